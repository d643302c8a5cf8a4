//! Objects of one organization in an object store.

use object_store::ObjectStore;
use object_store::path::{Path, PathPart};
use object_store::prefix::PrefixStore;
use tower_orgkey::OrgContext;

/// Returns the part of the store that belongs to this organization.
///
/// A code may contain `/`: as a path, the organization `a` would contain the objects of `a/b`. As one part of a path, it is
/// escaped.
pub fn objects<S: ObjectStore>(store: S, org: &OrgContext) -> PrefixStore<S> {
    let part = PathPart::from(org.org_code().as_str());
    PrefixStore::new(store, Path::from_iter([part]))
}
