//! Numbers for routes, so that rows are compared by a number instead of a string.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use foldhash::quality::RandomState;
use papaya::HashMap;

use crate::account::Route;

/// The longest template that has a number.
const LONGEST: usize = 1024;

/// A number that stands for a route in one aggregator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RouteId(u32);

impl RouteId {
    pub(crate) const UNMATCHED: Self = Self(0);
    pub(crate) const OTHER: Self = Self(1);
    const FIRST: u32 = 2;

    #[cfg(test)]
    pub(crate) fn nth(n: u32) -> Self {
        Self(Self::FIRST + n)
    }
}

/// The number of the first route of a service, which is usually the only one: axum has a service for each route.
#[derive(Debug, Default)]
pub(crate) struct KnownRoute(OnceLock<(Box<str>, RouteId)>);

impl KnownRoute {
    /// Returns what [`Routes::id`] returns, without a look-up if the template is known.
    #[inline]
    pub(crate) fn id(&self, routes: &Routes, template: &str) -> RouteId {
        match self.0.get() {
            Some((known, id)) if **known == *template => *id,
            Some(_) => routes.id(template),
            None => self.first(routes, template),
        }
    }

    #[cold]
    fn first(&self, routes: &Routes, template: &str) -> RouteId {
        let id = routes.id(template);
        // Other templates are not bounded.
        if id != RouteId::OTHER {
            let _ = self.0.set((template.into(), id));
        }
        id
    }
}

pub(crate) struct Routes {
    ids: HashMap<Arc<str>, RouteId, RandomState>,
    templates: RwLock<Vec<Arc<str>>>,
    capacity: usize,
}

impl Routes {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            ids: HashMap::default(),
            templates: RwLock::default(),
            capacity,
        }
    }

    /// Returns the number of a template, or `OTHER` if all numbers are taken.
    #[inline]
    pub(crate) fn id(&self, template: &str) -> RouteId {
        match self.ids.pin().get(template) {
            Some(id) => *id,
            None => self.add(template),
        }
    }

    #[cold]
    fn add(&self, template: &str) -> RouteId {
        if template.len() > LONGEST || self.is_full() {
            return RouteId::OTHER;
        }
        let mut templates = self
            .templates
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let ids = self.ids.pin();
        // Another request may have been first, for this template or for the last place.
        if let Some(id) = ids.get(template) {
            return *id;
        }
        let Ok(n) = u32::try_from(templates.len()) else {
            return RouteId::OTHER;
        };
        if templates.len() >= self.capacity {
            return RouteId::OTHER;
        }
        let template: Arc<str> = template.into();
        let id = RouteId(RouteId::FIRST + n);
        templates.push(Arc::clone(&template));
        ids.insert(template, id);
        id
    }

    fn is_full(&self) -> bool {
        let templates = self.templates.read();
        templates.unwrap_or_else(PoisonError::into_inner).len() >= self.capacity
    }

    pub(crate) fn route(&self, id: RouteId) -> Route {
        let templates = self
            .templates
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match id.0.checked_sub(RouteId::FIRST) {
            Some(n) => match templates.get(n as usize) {
                Some(template) => Route::Template(Arc::clone(template)),
                None => unreachable!("a number is given out after its template was kept"),
            },
            None if id == RouteId::UNMATCHED => Route::Unmatched,
            None => Route::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_beyond_the_bound_share_a_number() {
        let routes = Routes::new(2);
        let (a, b) = (routes.id("/a"), routes.id("/b"));
        assert_ne!(a, b);
        assert_eq!(routes.id("/c"), RouteId::OTHER);
        assert_eq!((routes.id("/a"), routes.id("/b")), (a, b));
        assert_eq!(routes.route(b), Route::Template("/b".into()));
        assert_eq!(routes.route(RouteId::OTHER), Route::Other);
        assert_eq!(routes.route(RouteId::UNMATCHED), Route::Unmatched);
        let long = "/".repeat(LONGEST + 1);
        assert_eq!(Routes::new(2).id(&long), RouteId::OTHER);
    }

    #[test]
    fn a_service_knows_only_its_first_route() {
        let routes = Routes::new(2);
        let known = KnownRoute::default();
        let a = known.id(&routes, "/a");
        let b = known.id(&routes, "/b");
        assert_eq!((a, b), (routes.id("/a"), routes.id("/b")));
        assert_ne!(a, b);
        assert_eq!((known.id(&routes, "/a"), known.id(&routes, "/b")), (a, b));
        assert_eq!(known.id(&routes, "/c"), RouteId::OTHER);
    }
}
