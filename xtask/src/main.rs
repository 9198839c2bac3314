//! placeholder of the first commit.
fn main() {}
