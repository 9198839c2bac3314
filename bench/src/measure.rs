//! Comparing: the things to be compared take turns, so that whatever else the machine does befalls all of them alike.
//!
//! What is told of two things is the median of their ratios *within a round*, not the ratio of medians: a slow second of the machine
//! slows both halves of a round and leaves their ratio as it is. How much the ratios of the rounds differ is the noise.

use std::convert::Infallible;
use std::time::Instant;

pub use std::hint::black_box;

/// What all rounds of a comparison took.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    /// Per thing compared: what each round told, in the order of the rounds.
    figures: Vec<Vec<f64>>,
}

/// A ratio, and how sure it is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ratio {
    /// The median over the rounds.
    pub value: f64,
    /// The noise: half the interquartile range over the rounds, relative to the median.
    pub spread: f64,
}

impl Rounds {
    /// The figures of one thing, in the order of the rounds; none for a thing that was not compared.
    #[must_use]
    pub fn figures(&self, thing: usize) -> &[f64] {
        self.figures.get(thing).map_or(&[], Vec::as_slice)
    }

    /// The median of one thing's figures; NaN for a thing that was not compared.
    #[must_use]
    pub fn median(&self, thing: usize) -> f64 {
        Quartiles::of(self.figures(thing)).median
    }

    /// How much one thing's figures differ: half their interquartile range, relative to the median.
    #[must_use]
    pub fn spread(&self, thing: usize) -> f64 {
        Quartiles::of(self.figures(thing)).spread()
    }

    /// How many times as much one thing took as another, round by round.
    #[must_use]
    pub fn ratio(&self, thing: usize, to: usize) -> Ratio {
        let pairs = self.figures(thing).iter().zip(self.figures(to));
        Ratio::of(&pairs.map(|(thing, to)| thing / to).collect::<Vec<_>>())
    }

    /// The same for figures of one's own, one a round: for what is made of several things of a round.
    #[must_use]
    pub fn derive(&self, figure: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> Ratio {
        let rounds = self.figures.iter().map(Vec::len).min().unwrap_or(0);
        let of_round = |round: usize| figure(&|thing| self.figures(thing)[round]);
        Ratio::of(&(0..rounds).map(of_round).collect::<Vec<_>>())
    }
}

impl Ratio {
    /// The ratio that these, of a round each, are samples of.
    #[must_use]
    pub fn of(ratios: &[f64]) -> Self {
        let quartiles = Quartiles::of(ratios);
        Self { value: quartiles.median, spread: quartiles.spread() }
    }
}

/// Runs the things in turn, `rounds` times after a few rounds that do not count. Each answers what its round told, such as the
/// nanoseconds of an operation ([`nanoseconds_each`]); what it does besides (setting up, tearing down) does not count.
///
/// Every other round goes the other way round (A B, B A), so that none profits from what another left in the caches.
pub fn compare(rounds: usize, things: &mut [&mut dyn FnMut() -> f64]) -> Rounds {
    let mut fallible: Vec<_> = things.iter_mut().map(|thing| move || Ok::<_, Infallible>(thing())).collect();
    let mut fallible: Vec<&mut dyn FnMut() -> Result<f64, Infallible>> =
        fallible.iter_mut().map(|thing| thing as _).collect();
    let Ok(rounds) = try_compare(rounds, &mut fallible);
    rounds
}

/// The same for things that can fail.
///
/// # Errors
/// The first error of a thing.
pub fn try_compare<E>(rounds: usize, things: &mut [&mut dyn FnMut() -> Result<f64, E>]) -> Result<Rounds, E> {
    let mut several: Vec<_> = things.iter_mut().map(|thing| move || thing().map(|figure| [figure])).collect();
    let mut several: Vec<&mut dyn FnMut() -> Result<[f64; 1], E>> =
        several.iter_mut().map(|thing| thing as _).collect();
    let [rounds] = try_compare_several(rounds, &mut several)?;
    Ok(rounds)
}

/// The same for things that tell several figures each round, such as what mapping took and what unmapping did.
///
/// # Errors
/// The first error of a thing.
pub fn try_compare_several<E, const N: usize>(
    rounds: usize,
    things: &mut [&mut dyn FnMut() -> Result<[f64; N], E>],
) -> Result<[Rounds; N], E> {
    let warming = 2 + rounds / 10;
    let mut all = [const { Rounds { figures: Vec::new() } }; N];
    all.iter_mut().for_each(|all| all.figures = vec![Vec::with_capacity(rounds); things.len()]);
    for round in 0..warming + rounds {
        for turn in 0..things.len() {
            let thing = if round % 2 == 0 { turn } else { things.len() - 1 - turn };
            let figures = things[thing]()?;
            if round >= warming {
                all.iter_mut().zip(figures).for_each(|(all, figure)| all.figures[thing].push(figure));
            }
        }
    }
    Ok(all)
}

/// The nanoseconds that each of the `count` operations took which `work` does.
pub fn nanoseconds_each(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64 / count.max(1) as f64
}

/// What lies at a quarter, at half and at three quarters of sorted figures.
struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
}

impl Quartiles {
    fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * sorted.len().checked_sub(1)? as f64;
            let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
            Some(below + (above - below) * place.fract())
        };
        let at = |part| at(part).unwrap_or(f64::NAN);
        Self { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / 2.0 / self.median.abs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_figures() {
        let ratio = Ratio::of(&[4.0, 1.0, 3.0, 2.0, 5.0]);
        assert_eq!(ratio, Ratio { value: 3.0, spread: 1.0 / 3.0 });
        assert_eq!(Ratio::of(&[1.0, 2.0]).value, 1.5);
        assert_eq!(Ratio::of(&[7.0]), Ratio { value: 7.0, spread: 0.0 });
        assert!(Ratio::of(&[]).value.is_nan());
    }

    #[test]
    fn things_take_turns_and_ratios_are_of_a_round() {
        let order = std::cell::RefCell::new(Vec::new());
        let mut slow = 0.0;
        // A machine that gets slower and slower: both double each round, and one is always three times the other.
        let mut one = || {
            order.borrow_mut().push('a');
            slow += 1.0;
            f64::powf(2.0, slow)
        };
        let mut slow = 0.0;
        let mut other = || {
            order.borrow_mut().push('b');
            slow += 1.0;
            3.0 * f64::powf(2.0, slow)
        };
        let rounds = compare(10, &mut [&mut one, &mut other]);
        assert_eq!(rounds.ratio(1, 0), Ratio { value: 3.0, spread: 0.0 });
        assert_eq!(rounds.derive(|figure| figure(0) + figure(1)).value, 4.0 * rounds.median(0));
        assert_eq!(rounds.figures(0).len(), 10, "what warms does not count");
        let order: String = order.borrow().iter().collect();
        assert!(order.starts_with("abbaabba"), "{order}");
        assert!(rounds.median(2).is_nan());
    }

    #[test]
    fn an_error_ends_it() {
        let mut left = 3;
        let mut failing = || {
            left -= 1;
            if left > 0 { Ok(1.0) } else { Err("enough") }
        };
        assert_eq!(try_compare(100, &mut [&mut failing]).unwrap_err(), "enough");
    }
}
