//! Values that stay where they are, each at an index, until they are taken out; then the place is used again.
//!
//! As the crate `slab`, but for one thing: a value is written where it stays, and not moved there. A value that was just
//! put together from parts is slow to read as a whole, and the fast path would wait for that.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(crate) struct Places<T> {
    places: Vec<Place<T>>,
    /// The next place to be used: a vacant one, or the first that is not there yet.
    next: usize,
    taken: usize,
}

#[derive(Debug)]
enum Place<T> {
    Taken(T),
    /// With the vacant place after it.
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

    /// The index that the next value will get.
    #[inline]
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    #[inline(always)]
    pub(crate) fn insert(&mut self, value: T) -> usize {
        let index = self.next;
        if index == self.places.len() {
            self.add_place();
        }
        let place = &mut self.places[index];
        let Place::Vacant(next) = *place else { unreachable!("the next place is vacant") };
        *place = Place::Taken(value);
        self.next = next;
        self.taken += 1;
        index
    }

    #[cold]
    fn add_place(&mut self) {
        self.places.push(Place::Vacant(self.places.len() + 1));
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, index: usize) -> T {
        let place = std::mem::replace(&mut self.places[index], Place::Vacant(self.next));
        let Place::Taken(value) = place else { unreachable!("who removes a value knows that it is there") };
        self.next = index;
        self.taken -= 1;
        value
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| match place {
            Place::Taken(value) => Some((index, value)),
            Place::Vacant(_) => None,
        })
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::Taken(value) => Some(value),
            Place::Vacant(_) => None,
        })
    }
}

impl<T> Index<usize> for Places<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        match &self.places[index] {
            Place::Taken(value) => value,
            Place::Vacant(_) => unreachable!("who has an index has its value"),
        }
    }
}

impl<T> IndexMut<usize> for Places<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.places[index] {
            Place::Taken(value) => value,
            Place::Vacant(_) => unreachable!("who has an index has its value"),
        }
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
                    prop_assert_eq!(places.insert(value), next);
                    prop_assert!(model.insert(next, value).is_none());
                } else {
                    let index = indices[value % indices.len()];
                    prop_assert_eq!(Some(places.remove(index)), model.remove(&index));
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
