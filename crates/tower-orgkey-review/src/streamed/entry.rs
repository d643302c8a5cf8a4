//! Which key of which organization a report has at a place.

/// A key in an organization. There may be millions of them.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Its place in the organizations, from one; 0 if it is not known.
    pub(super) org: u32,
    /// Its place on the list, or in the evidence if it is only there.
    key: u32,
    is_listed: bool,
    pub(super) is_shared: bool,
}

impl Entry {
    pub(super) fn new(org: u32, key: Place, is_shared: bool) -> Self {
        let (key, is_listed) = match key {
            Place::List(at) => (at, true),
            Place::Evidence(at) => (at, false),
        };
        Self {
            org,
            key,
            is_listed,
            is_shared,
        }
    }

    pub(super) fn key(self) -> Place {
        if self.is_listed {
            Place::List(self.key)
        } else {
            Place::Evidence(self.key)
        }
    }
}

/// Where a key is found.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// On the list.
    List(u32),
    /// In the evidence only.
    Evidence(u32),
}
