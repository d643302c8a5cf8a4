//! `Debug` of types with secrets, or with fields that do not implement it.

/// Implements `Debug` for a type: shows its name and the given fields only.
///
/// ```ignore
/// impl_debug!(KeyFilter);
/// impl_debug!([S, F: Clone] Service<S, F>);
/// impl_debug!(RegionLayer, |layer| { here: layer.core.here });
/// ```
macro_rules! impl_debug {
    (
        $([$($generics:tt)*])? $name:ident $(<$($parameter:ident),+>)?
        $(, |$this:ident| { $($field:ident: $value:expr),+ })?
    ) => {
        impl $(<$($generics)*>)? std::fmt::Debug for $name $(<$($parameter),+>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $(let $this = self;)?
                f.debug_struct(stringify!($name))
                    $($(.field(stringify!($field), &$value))+)?
                    .finish_non_exhaustive()
            }
        }
    };
}
