use std::sync::Arc;

use http::Extensions;

use super::layer::Core;

/// The extension of a request in which layers store values, each for its own clones further in.
///
/// The type is private to this crate, so no handler can read it from the extensions.
#[derive(Clone)]
pub(super) struct PerLayer<T>(Vec<(Arc<Core>, T)>);

impl<T: Clone + Send + Sync + 'static> PerLayer<T> {
    /// Stores the value of this layer. Replaces the value of a clone further out.
    pub(super) fn put(extensions: &mut Extensions, layer: &Arc<Core>, value: T) {
        let Self(values) = extensions.get_or_insert_with(|| Self(Vec::with_capacity(1)));
        values.retain(|(of, _)| !Arc::ptr_eq(of, layer));
        values.push((Arc::clone(layer), value));
    }

    /// Returns the values with their layers.
    pub(super) fn all(extensions: &Extensions) -> &[(Arc<Core>, T)] {
        extensions.get().map_or(&[], |Self(values)| values)
    }

    /// Returns the value that a clone of this layer has stored.
    pub(super) fn of<'a>(extensions: &'a Extensions, layer: &Arc<Core>) -> Option<&'a T> {
        let mut values = Self::all(extensions).iter();
        let (_, value) = values.find(|(of, _)| Arc::ptr_eq(of, layer))?;
        Some(value)
    }
}
