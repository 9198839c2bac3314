//! The steps that bytes say, one after the other.

use std::fmt::Debug;

use arbitrary::{Arbitrary, Unstructured};

/// Has each step done that `u` says, at most `most`; answers how many. `tell`: prints each before it is done.
pub(crate) fn each<'a, S: Arbitrary<'a> + Debug>(
    mut u: Unstructured<'a>,
    tell: bool,
    most: usize,
    mut done: impl FnMut(&S),
) -> usize {
    let mut number = 0;
    while number < most
        && !u.is_empty()
        && let Ok(step) = S::arbitrary(&mut u)
    {
        if tell {
            println!("  {number}: {step:x?}");
        }
        done(&step);
        number += 1;
    }
    number
}
