//! Values that stay where they are, each at an index, until its place is vacated; then the place is used again.
//!
//! Like the crate `slab`, except that values are changed in their places and never moved. A value that has just been
//! written in parts is slow to move as a whole, since the processor must wait until all parts are written; the fast
//! path would wait for that twice.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(crate) struct Places<T> {
    places: Vec<Place<T>>,
    /// The next place to be taken: a vacant one, or a new one at the end.
    next: usize,
    taken: usize,
}

#[derive(Debug)]
struct Place<T> {
    /// A vacant place keeps its last value.
    value: T,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Taken,
    /// It is vacant, and this is the place that is taken after it.
    Vacant(usize),
}

impl<T> Places<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Places { places: Vec::with_capacity(capacity), next: 0, taken: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.places.capacity()
    }

    /// The index of the place that is taken next.
    #[inline]
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// Takes the next place, with whatever value it had before; the first time with that of `make`.
    #[inline]
    pub(crate) fn take(&mut self, make: impl FnOnce() -> T) -> &mut T {
        let index = self.next;
        if index == self.places.len() {
            self.add(make());
        }
        let place = &mut self.places[index];
        let Next::Vacant(next) = std::mem::replace(&mut place.next, Next::Taken) else {
            unreachable!("the next place is vacant")
        };
        self.next = next;
        self.taken += 1;
        &mut place.value
    }

    #[cold]
    fn add(&mut self, value: T) {
        self.places.push(Place { value, next: Next::Vacant(self.places.len() + 1) });
    }

    /// Vacates a place; the value stays until it is taken again.
    #[inline]
    pub(crate) fn vacate(&mut self, index: usize) {
        let place = &mut self.places[index];
        debug_assert!(place.next == Next::Taken, "who vacates a place has it");
        place.next = Next::Vacant(std::mem::replace(&mut self.next, index));
        self.taken -= 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let taken = self.places.iter().enumerate().filter(|(_, place)| place.next == Next::Taken);
        taken.map(|(index, place)| (index, &place.value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().filter(|place| place.next == Next::Taken).map(|place| &mut place.value)
    }
}

impl<T> Index<usize> for Places<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        debug_assert!(self.places[index].next == Next::Taken, "who has an index has its place");
        &self.places[index].value
    }
}

impl<T> IndexMut<usize> for Places<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        debug_assert!(self.places[index].next == Next::Taken, "who has an index has its place");
        &mut self.places[index].value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn values_stay_at_their_indices(steps in proptest::collection::vec(any::<(bool, usize)>(), 0..200)) {
            let (mut places, mut model) = (Places::with_capacity(0), HashMap::new());
            for (adds, value) in steps {
                let indices: Vec<usize> = places.iter().map(|(index, _)| index).collect();
                if adds || indices.is_empty() {
                    let next = places.next();
                    *places.take(|| 0) = value;
                    prop_assert!(model.insert(next, value).is_none());
                } else {
                    let index = indices[value % indices.len()];
                    prop_assert_eq!(Some(places[index]), model.remove(&index));
                    places.vacate(index);
                }
                prop_assert_eq!(places.len(), model.len());
                prop_assert!(model.iter().all(|(&index, &value)| places[index] == value));
                prop_assert!(places.iter().all(|(index, value)| model[&index] == *value));
                // The most that there were at once, and no more.
                prop_assert!(places.places.len() <= 200);
            }
        }
    }
}
