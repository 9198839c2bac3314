//! Counting pages that moved, and what the counts prove.

/// The three kinds of pages that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Plain anonymous memory.
    Plain,
    /// The same, mlocked.
    Mlock,
    /// The same, pinned and not mlocked.
    Pinned,
}

impl Class {
    /// All of them, in the order in which victims take turns.
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Mlock, Self::Pinned];

    /// Its name in output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Mlock => "mlock",
            Self::Pinned => "pinned",
        }
    }
}

/// One value per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PerClass<T> {
    /// Of the plain pages.
    pub(crate) plain: T,
    /// Of the mlocked pages.
    pub(crate) mlock: T,
    /// Of the pinned pages.
    pub(crate) pinned: T,
}

impl<T> PerClass<T> {
    /// Makes the value of each class.
    pub(crate) fn from_fn(mut value: impl FnMut(Class) -> T) -> Self {
        Self { plain: value(Class::Plain), mlock: value(Class::Mlock), pinned: value(Class::Pinned) }
    }

    /// Turns each value into another.
    pub(crate) fn map<U>(self, mut turn: impl FnMut(T) -> U) -> PerClass<U> {
        PerClass { plain: turn(self.plain), mlock: turn(self.mlock), pinned: turn(self.pinned) }
    }

    /// The value of a class.
    pub(crate) fn get(&self, class: Class) -> &T {
        match class {
            Class::Plain => &self.plain,
            Class::Mlock => &self.mlock,
            Class::Pinned => &self.pinned,
        }
    }

    /// The value of a class, to change.
    pub(crate) fn get_mut(&mut self, class: Class) -> &mut T {
        match class {
            Class::Plain => &mut self.plain,
            Class::Mlock => &mut self.mlock,
            Class::Pinned => &mut self.pinned,
        }
    }
}

/// Where the pages of one class were seen last, and which of them moved.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// The frames at the last look.
    last: Vec<u64>,
    /// Which moved in the current round.
    in_round: Vec<bool>,
    /// Which moved in any round.
    ever: Vec<bool>,
}

impl Tally {
    /// Starts from the frames before the first round.
    pub(crate) fn new(frames: Vec<u64>) -> Self {
        let still = vec![false; frames.len()];
        Self { last: frames, in_round: still.clone(), ever: still }
    }

    /// Begins the next round.
    pub(crate) fn begin_round(&mut self) {
        self.in_round.fill(false);
    }

    /// Compares with the last look, and remembers this one. A page counts once, however often it moves, and also
    /// when it comes back to an old frame: a device would have written elsewhere in between.
    pub(crate) fn look(&mut self, frames: &[u64]) {
        assert_eq!(frames.len(), self.last.len(), "the pages of a class are always the same");
        for (page, frame) in frames.iter().enumerate() {
            if self.last[page] != *frame {
                self.last[page] = *frame;
                self.in_round[page] = true;
                self.ever[page] = true;
            }
        }
    }

    /// How many moved in the current round.
    pub(crate) fn moved_in_round(&self) -> usize {
        self.in_round.iter().filter(|moved| **moved).count()
    }

    /// How many moved in any round.
    pub(crate) fn moved(&self) -> usize {
        self.ever.iter().filter(|moved| **moved).count()
    }
}

/// Whether `moved` of `pages` are enough to speak of moving: half of them.
pub(crate) fn enough(moved: usize, pages: usize) -> bool {
    pages > 0 && moved >= pages.div_ceil(2)
}

/// Percent, rounded so that 0 means none and 100 means all.
pub(crate) fn percent(part: usize, whole: usize) -> usize {
    if whole == 0 || part == 0 {
        0
    } else if part >= whole {
        100
    } else {
        ((part * 100 + whole / 2) / whole).clamp(1, 99)
    }
}

/// What a run proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The mlocked pages moved, the pinned ones did not.
    Proven,
    /// Nothing moved that should not, but too few mlocked pages moved to say anything.
    TooLittle,
    /// A pinned page moved: pinning does not work here.
    PinMoved,
}

impl Verdict {
    /// The verdict on the counts of a whole run.
    pub(crate) fn of(moved: &PerClass<usize>, pages: usize) -> Self {
        if moved.pinned > 0 {
            Self::PinMoved
        } else if enough(moved.mlock, pages) {
            Self::Proven
        } else {
            Self::TooLittle
        }
    }

    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::TooLittle => "too-little",
            Self::PinMoved => "pin-moved",
        }
    }

    /// The exit code of the program. 1 stands for a run that failed and 2 for wrong arguments.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Proven => 0,
            Self::TooLittle => 3,
            Self::PinMoved => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_once_however_often_it_moves() {
        let mut tally = Tally::new(vec![10, 20, 30, 40]);
        tally.begin_round();
        tally.look(&[11, 20, 30, 40]);
        tally.look(&[12, 20, 31, 40]);
        assert_eq!((tally.moved_in_round(), tally.moved()), (2, 2));
        tally.begin_round();
        assert_eq!((tally.moved_in_round(), tally.moved()), (0, 2));
        tally.look(&[13, 21, 31, 40]);
        assert_eq!((tally.moved_in_round(), tally.moved()), (2, 3));
    }

    #[test]
    fn a_page_that_comes_back_has_moved() {
        let mut tally = Tally::new(vec![10]);
        tally.begin_round();
        tally.look(&[11]);
        tally.look(&[10]);
        assert_eq!((tally.moved_in_round(), tally.moved()), (1, 1));
    }

    #[test]
    fn pages_are_compared_with_the_round_before_and_not_with_the_first() {
        let mut tally = Tally::new(vec![10]);
        tally.look(&[11]);
        tally.begin_round();
        tally.look(&[11]);
        assert_eq!(tally.moved_in_round(), 0);
        tally.look(&[10]);
        assert_eq!(tally.moved_in_round(), 1);
    }

    #[test]
    fn none_and_all_are_never_rounded_to() {
        assert_eq!(percent(0, 4096), 0);
        assert_eq!(percent(1, 4096), 1);
        assert_eq!(percent(4095, 4096), 99);
        assert_eq!(percent(4096, 4096), 100);
        assert_eq!(percent(1, 2), 50);
        assert_eq!(percent(0, 0), 0);
    }

    #[test]
    fn half_of_the_mlocked_must_move() {
        let moved = |mlock, pinned| PerClass { plain: 100, mlock, pinned };
        assert_eq!(Verdict::of(&moved(50, 0), 100), Verdict::Proven);
        assert_eq!(Verdict::of(&moved(49, 0), 100), Verdict::TooLittle);
        assert_eq!(Verdict::of(&moved(50, 0), 101), Verdict::TooLittle);
        assert_eq!(Verdict::of(&moved(51, 0), 101), Verdict::Proven);
        assert_eq!(Verdict::of(&moved(0, 0), 0), Verdict::TooLittle);
    }

    #[test]
    fn one_pinned_page_that_moves_outweighs_all_else() {
        for mlock in [0, 100] {
            let verdict = Verdict::of(&PerClass { plain: 100, mlock, pinned: 1 }, 100);
            assert_eq!(verdict, Verdict::PinMoved);
        }
    }

    #[test]
    fn every_verdict_has_its_own_exit_code() {
        assert_eq!(
            [Verdict::Proven, Verdict::TooLittle, Verdict::PinMoved].map(Verdict::exit_code),
            [0, 3, 4]
        );
    }
}
