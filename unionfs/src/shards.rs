//! A table in parts, each with its lock: requests for different objects seldom meet at one.
//!
//! The numbers by which objects are found follow each other, so that they are spread evenly.

use crate::gate::Apart;

/// So many parts.
pub(crate) const SHARDS: usize = 16;

/// The parts, each in cache lines of its own. No two of their locks are held at once.
#[derive(Debug)]
pub(crate) struct Shards<T>([Apart<T>; SHARDS]);

impl<T> Shards<T> {
    /// Makes the parts.
    pub(crate) fn new(make: impl Fn() -> T) -> Self {
        Self(std::array::from_fn(|_| Apart(make())))
    }

    /// Returns the part of the object with this number.
    pub(crate) fn of(&self, number: u64) -> &T {
        let [first, ..] = &self.0;
        &self.0.get(Self::index(number)).unwrap_or(first).0
    }

    /// Returns all parts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().map(|part| &part.0)
    }

    /// Returns all parts again and again, that of the object with this number after all others.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &T> {
        self.iter().cycle().skip(Self::index(number) + 1)
    }

    fn index(number: u64) -> usize {
        usize::try_from(number % SHARDS as u64).unwrap_or(0)
    }
}

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_have_parts_of_their_own() {
        let shards = Shards::<std::cell::Cell<u32>>::default();
        (0..3 * SHARDS as u64).for_each(|number| shards.of(number).set(shards.of(number).get() + 1));
        assert!(shards.iter().all(|part| part.get() == 3));
        let last = shards.after(5).take(SHARDS).last().unwrap();
        assert!(std::ptr::eq(last, shards.of(5)));
    }
}
