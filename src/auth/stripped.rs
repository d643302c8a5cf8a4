use std::sync::Arc;

use http::Extensions;

use super::layer::Core;
use crate::key::ApiKey;

/// The keys that layers further out have removed from the headers of a request, for their own clones further in.
///
/// The type is private to this crate, so no handler can read it from the extensions.
#[derive(Clone)]
pub(super) struct Stripped(Vec<Of>);

#[derive(Clone)]
struct Of {
    layer: Arc<Core>,
    key: ApiKey,
}

impl Stripped {
    /// Stores the key that this layer has removed.
    pub(super) fn put(extensions: &mut Extensions, layer: &Arc<Core>, key: ApiKey) {
        let stripped = extensions.get_or_insert_with(|| Self(Vec::with_capacity(1)));
        // A clone further in may remove another key, which a layer in between added.
        stripped.0.retain(|of| !Arc::ptr_eq(&of.layer, layer));
        stripped.0.push(Of {
            layer: Arc::clone(layer),
            key,
        });
    }

    /// Returns the key that a clone of this layer has removed.
    pub(super) fn by<'a>(extensions: &'a Extensions, layer: &Arc<Core>) -> Option<&'a [u8]> {
        let Self(stripped) = extensions.get()?;
        let of = stripped.iter().find(|of| Arc::ptr_eq(&of.layer, layer))?;
        Some(of.key.expose_secret().as_bytes())
    }
}

impl_debug!(Stripped);
