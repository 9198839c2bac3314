//! What is other than it should be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many places are told one by one.
const MOST: usize = 20;

/// How much of a difference is told.
const SHOWN: usize = 16;

/// Everything wrong that was found.
#[derive(Default)]
pub(super) struct Wrong {
    bytes: AtomicU64,
    /// Pinned pages that have moved.
    moved: AtomicU64,
    places: Mutex<Vec<String>>,
}

impl Wrong {
    /// Compares what was found with what had to be; `what` says where.
    pub(super) fn compare(&self, what: impl FnOnce() -> String, found: &[u8], expected: &[u8]) {
        let differs = |(one, other): &(&u8, &u8)| one != other;
        let pairs = || found.iter().zip(expected);
        let missing = found.len().abs_diff(expected.len());
        let bytes = pairs().filter(differs).count() + missing;
        if bytes == 0 {
            return;
        }
        let first = pairs().position(|pair| differs(&pair)).unwrap_or(found.len().min(expected.len()));
        let shown = |all: &[u8]| format!("{:02x?}", &all[first..all.len().min(first + SHOWN)]);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tell(format!(
            "{}: {bytes} wrong bytes, from {first:#x} on: {}, not {}",
            what(),
            shown(found),
            shown(expected)
        ));
    }

    /// So many pages of something have moved that must not.
    pub(super) fn moved(&self, what: &str, pages: u64) {
        if pages > 0 {
            self.moved.fetch_add(pages, Ordering::Relaxed);
            self.tell(format!("{pages} pages of {what} have moved"));
        }
    }

    fn tell(&self, what: String) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() < MOST {
            places.push(what);
        }
    }

    /// Bytes that were wrong.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Pages that have moved.
    pub(super) fn moved_pages(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// The first few, in words.
    pub(super) fn places(&self) -> Vec<String> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_counts() {
        let wrong = Wrong::default();
        wrong.compare(|| unreachable!(), b"all the same", b"all the same");
        wrong.moved("anything", 0);
        assert_eq!((wrong.bytes(), wrong.moved_pages(), wrong.places().len()), (0, 0, 0));
        wrong.compare(|| "a copy".to_owned(), b"all thx samx", b"all the same");
        assert_eq!(wrong.bytes(), 2);
        assert!(wrong.places()[0].starts_with("a copy: 2 wrong bytes, from 0x6 on: [78, 20"));
        wrong.compare(|| "a part".to_owned(), b"", b"xyz");
        wrong.moved("a buffer", 3);
        assert_eq!((wrong.bytes(), wrong.moved_pages(), wrong.places().len()), (5, 3, 3));
        (0..2 * MOST).for_each(|_| wrong.moved("a buffer", 1));
        assert_eq!((wrong.moved_pages(), wrong.places().len()), (3 + 2 * MOST as u64, MOST));
    }
}
