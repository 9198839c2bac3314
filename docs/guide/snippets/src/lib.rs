//! The guide's pages that have Rust code in them, so that `cargo test --doc` runs it. (The tutorial's files are no snippets: `cargo
//! xtask guide` writes, builds and tests them as the tutorial says.)

macro_rules! pages {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(
            #[doc = include_str!(concat!("../../src/", $file))]
            #[cfg(doctest)]
            pub mod $name {}
        )*
    };
}

pages! {
    quick_start: "quick-start.md",
    migrate: "migrate.md",
    trouble: "trouble.md",
}
