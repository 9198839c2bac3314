//! The tree of areas: a B+tree whose inner entries know the largest hole below them.
//!
//! Leaves hold the areas, inner nodes hold per child its extent (first and last IOVA, largest hole inside). All leaves
//! lie at the same depth, and no node but the root of an empty space is empty. Because an entry knows where its child
//! ends, the way down always leads to the first area that ends at or after an address: no step aside is needed.

use crate::slab::{NONE, Slab};
use crate::space::node::{Branch, Entry, Extent, Held, Node};
use crate::{Errno, Iova, IovaRange};

/// Entries of a node: a last-IOVA column of four cache lines.
pub(super) const FAN_OUT: usize = 32;

/// The most inner nodes above a leaf. With [`FAN_OUT`] entries a node, a space would need more insertions to get there
/// than 64 bits count.
pub(super) const MAX_HEIGHT: usize = 24;

/// A range of IOVAs in use, and the small handle that the space keeps for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area<T> {
    /// The IOVAs.
    pub range: IovaRange,
    /// What [`IovaSpace::insert`] was given with them.
    pub value: T,
}

impl<T: Copy> Area<T> {
    pub(super) fn new((last, held): (u64, Held<T>)) -> Option<Self> {
        Some(Self { range: IovaRange::new(Iova(held.first), Iova(last))?, value: held.value })
    }
}

/// The IOVA space of an IOAS: areas that do not overlap, in order of address, each with a value.
///
/// Finding, inserting, removing and looking for room take O(log n) steps with n areas. Inserting can fail for lack of
/// memory and then has changed nothing; removing never allocates. Freed nodes are used again, and the memory is given
/// back when the space gets empty.
///
/// `N` is the number of entries of a node, at least 4; it is a matter of speed alone.
pub struct IovaSpace<T: Copy, const N: usize = FAN_OUT> {
    pub(super) leaves: Slab<Node<Held<T>, N>>,
    pub(super) inner: Slab<Node<Branch, N>>,
    /// A leaf when `height` is 0, otherwise an inner node with at least two children; [`NONE`] in an empty space.
    pub(super) root: u32,
    /// Inner nodes on the way from the root to any leaf.
    pub(super) height: usize,
    /// Bytes of the largest hole between two areas: what a node above the root would know of it.
    pub(super) hole: u64,
    areas: usize,
}

/// A way down: per inner node, from the root on, the node and the place in it where the way goes on.
pub(super) type Path = [Step; MAX_HEIGHT];

#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) node: u32,
    pub(super) at: u32,
}

impl Step {
    pub(super) const NOWHERE: Self = Self { node: NONE, at: 0 };

    const fn at(self) -> usize {
        self.at as usize
    }
}

/// What became of a node that lost an entry.
enum Outcome {
    /// It is there, with this extent.
    Kept(Extent),
    /// It was empty, and its place is free again.
    Gone,
    /// It and a neighbour became one, with this extent: the child at this place took in the child after it, whose place
    /// is free again.
    Merged(usize, Extent),
}

impl<T: Copy> IovaSpace<T> {
    /// An empty space; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_fan_out()
    }
}

impl<T: Copy> Default for IovaSpace<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy, const N: usize> IovaSpace<T, N> {
    /// An empty space with nodes of `N` entries; allocates nothing.
    #[must_use]
    pub const fn with_fan_out() -> Self {
        Self { leaves: Slab::new(), inner: Slab::new(), root: NONE, height: 0, hole: 0, areas: 0 }
    }

    /// The number of areas. O(1).
    #[must_use]
    pub const fn len(&self) -> usize {
        self.areas
    }

    /// Whether there is no area. O(1).
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.areas == 0
    }

    /// The area that contains `iova`. O(log n).
    #[must_use]
    pub fn find(&self, iova: Iova) -> Option<Area<T>> {
        self.at_or_after(iova).filter(|area| area.range.contains(iova))
    }

    /// The first area that ends at or after `iova`: the one that contains it, else the next one above. O(log n).
    #[must_use]
    pub fn at_or_after(&self, iova: Iova) -> Option<Area<T>> {
        let (leaf, at) = self.seek(iova)?;
        Area::new(leaf.get(at)?)
    }

    /// Whether an area shares an IOVA with `range`. O(log n).
    #[must_use]
    pub fn overlaps(&self, range: IovaRange) -> bool {
        self.at_or_after(range.first()).is_some_and(|area| area.range.overlaps(range))
    }

    /// All areas in order of address. O(log n) to begin and per leaf, O(1) per area.
    pub fn iter(&self) -> impl Iterator<Item = Area<T>> + '_ {
        Iter { space: self, place: self.seek(Iova(0)) }
    }

    /// The first IOVA of the first area and the last one of the last.
    pub(super) fn ends(&self) -> Option<(u64, u64)> {
        match self.height {
            0 => self.leaves.get(self.root)?.ends(),
            _ => self.inner.get(self.root)?.ends(),
        }
    }

    /// The leaf and the place in it of the first area that ends at or after `iova`.
    fn seek(&self, iova: Iova) -> Option<(&Node<Held<T>, N>, usize)> {
        let mut number = self.root;
        for _ in 0..self.height {
            let node = self.inner.get(number)?;
            let (_, branch) = node.get(node.seek(iova.0))?;
            number = branch.child;
        }
        let leaf = self.leaves.get(number)?;
        Some((leaf, leaf.seek(iova.0)))
    }

    /// The way down to the leaf where an area at `first` is or belongs, and whether it belongs behind all areas.
    fn descend(&self, first: u64) -> Option<(Path, u32, bool)> {
        let mut path = [Step::NOWHERE; MAX_HEIGHT];
        let mut number = self.root;
        let mut append = true;
        for step in path.iter_mut().take(self.height) {
            let node = self.inner.get(number)?;
            let at = node.seek(first);
            append &= at == node.len();
            // Behind all children: the last one takes it.
            let at = at.min(node.len().wrapping_sub(1));
            *step = Step { node: number, at: u32::try_from(at).ok()? };
            number = node.get(at)?.1.child;
        }
        Some((path, number, append))
    }

    /// Adds an area. O(log n).
    ///
    /// # Errors
    /// EEXIST when an area shares an IOVA with `range`, ENOMEM. Nothing has changed then.
    pub fn insert(&mut self, range: IovaRange, value: T) -> Result<(), Errno> {
        let (first, last) = (range.first().0, range.last().0);
        let held = Held { first, value };
        if self.is_empty() {
            self.root = self.leaves.put(Node::new(last, held))?;
            (self.height, self.hole, self.areas) = (0, 0, 1);
            return Ok(());
        }

        let (path, number, append) = self.descend(first).ok_or(Errno::ENOMEM)?;
        let leaf = self.leaves.get(number).ok_or(Errno::ENOMEM)?;
        let at = leaf.seek(first);
        if leaf.get(at).is_some_and(|(_, next)| next.first <= last) {
            return Err(Errno::EEXIST);
        }
        if leaf.is_full() {
            self.reserve_for_split(&path)?;
        }

        // Nothing fails from here on.
        let known = self.largest_hole(&path).ok_or(Errno::ENOMEM)?;
        let leaf = self.leaves.get_mut(number).ok_or(Errno::ENOMEM)?;
        let divided = leaf.hole_before(at);
        let upper = leaf.insert(at, last, held, append);
        self.areas = self.areas.wrapping_add(1);
        if upper.is_none() && divided.is_some_and(|divided| divided < known) {
            // A hole that was not the largest one got smaller, between areas of the leaf: its extent is the same.
            return Ok(());
        }
        let extent = match leaf.hole_before(at) {
            // At the end of the leaf: the end is new, and one hole.
            Some(before) if upper.is_none() && at.wrapping_add(1) == leaf.len() => {
                let first = leaf.ends().map_or(first, |(first, _)| first);
                Extent { first, last, hole: known.max(before) }
            }
            _ => leaf.extent().ok_or(Errno::ENOMEM)?,
        };
        let upper = link(&mut self.leaves, upper)?;
        self.rise(path.get(..self.height).unwrap_or(&[]), extent, upper, append)
    }

    /// Cuts the area that contains `last` behind it: the lower part keeps its value, the rest becomes an area of its own with
    /// `value`. O(log n).
    ///
    /// # Errors
    /// ENOENT when no area contains both `last` and an IOVA behind it, ENOMEM. Nothing has changed then.
    pub fn split(&mut self, last: Iova, value: T) -> Result<(), Errno> {
        let whole = self.find(last).ok_or(Errno::ENOENT)?;
        let upper = last.checked_add(1).and_then(|first| IovaRange::new(first, whole.range.last()));
        let upper = upper.ok_or(Errno::ENOENT)?;
        let (path, number, _) = self.descend(last.0).ok_or(Errno::ENOENT)?;
        if self.leaves.get(number).is_some_and(Node::is_full) {
            self.reserve_for_split(&path)?;
        }
        // The nodes above go on telling of the area as it was; the way to the upper part leads to this leaf thereby, and
        // adding it makes all of them true again.
        let leaf = self.leaves.get_mut(number).ok_or(Errno::ENOENT)?;
        let at = leaf.seek(last.0);
        leaf.set(at, last.0, Held { first: whole.range.first().0, value: whole.value });
        self.insert(upper, value)
    }

    /// What is known, above the leaf at the end of `path`, as the leaf's largest hole.
    fn largest_hole(&self, path: &Path) -> Option<u64> {
        let Some(above) = self.height.checked_sub(1) else { return Some(self.hole) };
        let step = path.get(above)?;
        let (_, branch) = self.inner.get(step.node)?.get(step.at())?;
        Some(branch.hole)
    }

    /// Makes room for the nodes that splitting a leaf can lead to: itself, all full nodes right above it and, when all
    /// are full, a root.
    fn reserve_for_split(&mut self, path: &Path) -> Result<(), Errno> {
        let way = path.iter().take(self.height);
        let full =
            way.rev().map_while(|step| self.inner.get(step.node)).take_while(|node| node.is_full()).count();
        let inner = if full == self.height {
            if self.height >= MAX_HEIGHT {
                return Err(Errno::ENOMEM);
            }
            full.wrapping_add(1)
        } else {
            full
        };
        self.leaves.reserve(1)?;
        self.inner.reserve(inner)
    }

    /// Brings the inner nodes up to date, from the bottom to the top, after the node at the end of `way` (from the root on) has got
    /// the given extent, and after the given upper part was split off it.
    fn rise(
        &mut self,
        way: &[Step],
        extent: Extent,
        mut upper: Option<(u64, Branch)>,
        append: bool,
    ) -> Result<(), Errno> {
        let mut change = Change::Extent(extent);
        for step in way.iter().rev() {
            let node = self.inner.get_mut(step.node).ok_or(Errno::ENOMEM)?;
            let (last, branch) = node.get(step.at()).ok_or(Errno::ENOMEM)?;
            let before = Extent { first: branch.first, last, hole: branch.hole };
            let after = change.applied_to(before);
            node.set(step.at(), after.last, after.branch(branch.child));
            let split = match upper {
                Some((last, branch)) => node.insert(step.at().wrapping_add(1), last, branch, append),
                None if after == before => return Ok(()),
                None if after == (Extent { last: after.last, ..before })
                    && step.at().wrapping_add(1) == node.len() =>
                {
                    // Nothing but the end of the node's last child moved, and the node's own end with it.
                    change = Change::Last(after.last);
                    continue;
                }
                None => None,
            };
            change = Change::Extent(node.extent().ok_or(Errno::ENOMEM)?);
            upper = link(&mut self.inner, split)?;
        }
        // The end of the space is not among the holes between areas.
        let Change::Extent(extent) = change else { return Ok(()) };
        self.hole = extent.hole;
        if let Some(upper) = upper {
            let mut root = Node::new(extent.last, extent.branch(self.root));
            root.append(core::iter::once(upper));
            self.hole = root.extent().map_or(0, |extent| extent.hole);
            self.root = self.inner.put(root)?;
            self.height = self.height.wrapping_add(1);
        }
        Ok(())
    }

    /// Takes out the area that starts exactly at `first`; `None` when there is none. O(log n), allocates nothing.
    pub fn remove(&mut self, first: Iova) -> Option<Area<T>> {
        let (path, number, _) = self.descend(first.0)?;
        let known = self.largest_hole(&path)?;
        let leaf = self.leaves.get_mut(number)?;
        let at = leaf.seek(first.0);
        if leaf.get(at)?.1.first != first.0 {
            return None;
        }
        let before = leaf.hole_before(at).unwrap_or(0);
        let removed = leaf.remove(at)?;
        self.areas = self.areas.wrapping_sub(1);
        let joined = leaf.hole_before(at);
        let small = leaf.len() <= Node::<Held<T>, N>::SMALL;
        if self.areas == 0 {
            *self = Self::with_fan_out();
        } else if !small && at == leaf.len() && (before == 0 || before < known) {
            // At the end of the leaf, behind a hole that was not its largest: nothing but its end moves.
            if let Some((first, last)) = leaf.ends() {
                let way = path.get(..self.height).unwrap_or(&[]);
                self.rise(way, Extent { first, last, hole: known }, None, false).ok()?;
            }
        } else if small || joined.is_none_or(|joined| joined > known) {
            self.sink(&path, number);
        }
        // Else two holes between areas of the leaf became one that is not larger than the largest: its extent is the
        // same.
        Area::new(removed)
    }

    /// Brings the inner nodes up to date, from the bottom to the top, after the leaf `number` at the end of `path` has
    /// lost an area.
    fn sink(&mut self, path: &Path, number: u32) -> Option<()> {
        let mut shrunk = number;
        let way = path.get(..self.height)?;
        for (depth, step) in way.iter().enumerate().rev() {
            let node = self.inner.get(step.node)?;
            let at = step.at();
            let outcome = if depth.wrapping_add(1) == self.height {
                settle(&mut self.leaves, Siblings::of(node, at, shrunk))
            } else {
                let siblings = Siblings::of(node, at, shrunk);
                settle(&mut self.inner, siblings)
            }?;
            let node = self.inner.get_mut(step.node)?;
            match outcome {
                // No node above it loses an entry.
                Outcome::Kept(extent) => return self.rise(way.get(..=depth)?, extent, None, false).ok(),
                Outcome::Gone => {
                    node.remove(at)?;
                }
                Outcome::Merged(at, extent) => {
                    let (_, branch) = node.get(at)?;
                    node.set(at, extent.last, extent.branch(branch.child));
                    node.remove(at.wrapping_add(1))?;
                }
            }
            shrunk = step.node;
        }
        let extent = match self.height {
            0 => self.leaves.get(self.root)?.extent(),
            _ => self.inner.get(self.root)?.extent(),
        };
        self.hole = extent?.hole;
        self.lower_root()
    }

    /// Drops roots with a single child.
    fn lower_root(&mut self) -> Option<()> {
        while self.height > 0 {
            let root = self.inner.get(self.root)?;
            if root.len() > 1 {
                break;
            }
            let (_, branch) = root.get(0)?;
            self.inner.free(self.root);
            self.root = branch.child;
            self.height = self.height.wrapping_sub(1);
        }
        Some(())
    }
}

/// Stores a split-off node and answers the entry for it.
fn link<E: Entry, const N: usize>(
    nodes: &mut Slab<Node<E, N>>,
    node: Option<Node<E, N>>,
) -> Result<Option<(u64, Branch)>, Errno> {
    let Some(node) = node else { return Ok(None) };
    let Some(extent) = node.extent() else { return Ok(None) };
    let number = nodes.put(node)?;
    Ok(Some((extent.last, extent.branch(number))))
}

/// What has changed of a node's extent.
enum Change {
    /// All of it may have: this is it now.
    Extent(Extent),
    /// The last IOVA alone. So areas that come and go behind all others change one word on each level.
    Last(u64),
}

impl Change {
    fn applied_to(&self, before: Extent) -> Extent {
        match *self {
            Self::Extent(extent) => extent,
            Self::Last(last) => Extent { last, ..before },
        }
    }
}

/// A child that lost an entry, and its neighbours under the same parent.
struct Siblings {
    at: usize,
    child: u32,
    before: Option<u32>,
    after: Option<u32>,
}

impl Siblings {
    fn of<const N: usize>(parent: &Node<Branch, N>, at: usize, child: u32) -> Self {
        let number = |at| Some(parent.get(at)?.1.child);
        Self { at, child, before: at.checked_sub(1).and_then(number), after: number(at.wrapping_add(1)) }
    }
}

/// Frees a node that lost its last entry, and merges one that has become small with a neighbour.
fn settle<E: Entry, const N: usize>(nodes: &mut Slab<Node<E, N>>, siblings: Siblings) -> Option<Outcome> {
    let Siblings { at, child, before, after } = siblings;
    let node = nodes.get(child)?;
    let Some(extent) = node.extent() else {
        nodes.free(child);
        return Some(Outcome::Gone);
    };
    if node.len() > Node::<E, N>::SMALL {
        return Some(Outcome::Kept(extent));
    }
    let fits = |other: &u32| {
        let other = nodes.get(*other).map_or(N, Node::len);
        node.len().saturating_add(other) <= Node::<E, N>::MERGED
    };
    let (at, lower, upper) = if let Some(before) = before.filter(fits) {
        (at.wrapping_sub(1), before, child)
    } else if let Some(after) = after.filter(fits) {
        (at, child, after)
    } else {
        return Some(Outcome::Kept(extent));
    };
    let taken = *nodes.get(upper)?;
    let node = nodes.get_mut(lower)?;
    node.append(taken.from(0));
    let extent = node.extent()?;
    nodes.free(upper);
    Some(Outcome::Merged(at, extent))
}

/// The areas in order: a leaf at a time, each found from the end of the one before.
struct Iter<'a, T: Copy, const N: usize> {
    space: &'a IovaSpace<T, N>,
    place: Option<(&'a Node<Held<T>, N>, usize)>,
}

impl<T: Copy, const N: usize> Iterator for Iter<'_, T, N> {
    type Item = Area<T>;

    fn next(&mut self) -> Option<Area<T>> {
        let (leaf, at) = self.place?;
        let area = Area::new(leaf.get(at)?)?;
        let next = at.wrapping_add(1);
        self.place = if next < leaf.len() {
            Some((leaf, next))
        } else {
            area.range.last().checked_add(1).and_then(|iova| self.space.seek(iova))
        };
        Some(area)
    }
}
