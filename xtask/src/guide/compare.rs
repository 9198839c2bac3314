//! What a page shows, and what came.

/// Whether the lines that came are those that are shown: `...` on a line of its own stands for any lines, also none, and `[..]` for
/// any part of a line. What is at the end of lines does not count.
pub(super) fn is_like(shown: &[&str], came: &[&str]) -> bool {
    match shown {
        [] => came.is_empty(),
        ["...", rest @ ..] => (0..=came.len()).any(|skipped| is_like(rest, &came[skipped..])),
        [line, rest @ ..] => match came {
            [first, others @ ..] => line_is_like(line.trim_end(), first.trim_end()) && is_like(rest, others),
            [] => false,
        },
    }
}

fn line_is_like(shown: &str, came: &str) -> bool {
    match shown.split_once("[..]") {
        None => shown == came,
        Some((before, after)) => {
            let Some(rest) = came.strip_prefix(before) else { return false };
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| line_is_like(after, &rest[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_gaps() {
        assert!(is_like(&["a", "b"], &["a", "b  "]));
        assert!(!is_like(&["a"], &["a", "b"]) && !is_like(&["a", "b"], &["a"]));
        assert!(is_like(&["...", "b", "..."], &["a", "b"]) && is_like(&["..."], &[]));
        assert!(!is_like(&["...", "c", "..."], &["a", "b"]));
        assert!(is_like(&["took [..] s"], &["took 1.5 s"]) && is_like(&["[..]"], &["ü"]));
        assert!(!is_like(&["took [..] s"], &["took 1.5 ms?"]));
    }
}
