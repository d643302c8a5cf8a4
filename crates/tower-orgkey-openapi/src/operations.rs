//! The operations of a document.

use std::collections::BTreeSet;

use http::Method;
use utoipa::openapi::path::{Operation, PathItem, Paths};

use crate::SCHEME;

/// Sets of scopes, of which a key must hold one. An empty set is any key.
pub(crate) type Alternatives = BTreeSet<BTreeSet<String>>;

fn of_item(item: &PathItem) -> [(Method, &Option<Operation>); 8] {
    [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::OPTIONS, &item.options),
        (Method::HEAD, &item.head),
        (Method::PATCH, &item.patch),
        (Method::TRACE, &item.trace),
    ]
}

fn of_item_mut(item: &mut PathItem) -> [&mut Option<Operation>; 8] {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
    ]
}

/// Returns all operations with their method and path.
pub(crate) fn all(paths: &Paths) -> impl Iterator<Item = (Method, &str, &Operation)> {
    paths.paths.iter().flat_map(|(path, item)| {
        of_item(item)
            .into_iter()
            .filter_map(move |(method, operation)| {
                Some((method, path.as_str(), operation.as_ref()?))
            })
    })
}

/// Returns all operations, in the same order.
pub(crate) fn all_mut(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths
        .paths
        .values_mut()
        .flat_map(|item| of_item_mut(item).into_iter().flatten())
}

/// Returns the alternatives that an operation documents for keys of organizations, or `None` if it documents none.
pub(crate) fn documented(operation: &Operation) -> Option<Alternatives> {
    let mut alternatives = Alternatives::new();
    for requirement in operation.security.iter().flatten() {
        // The type has no other access to its contents.
        let requirement = serde_json::to_value(requirement).unwrap_or_default();
        if let Some(scopes) = requirement[SCHEME].as_array() {
            let scopes = scopes.iter().filter_map(|scope| scope.as_str());
            alternatives.insert(scopes.map(str::to_owned).collect());
        }
    }
    (!alternatives.is_empty()).then_some(alternatives)
}

/// Returns the alternatives of two requirements that must both be met.
pub(crate) fn both(one: &Alternatives, other: &Alternatives) -> Alternatives {
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| a.union(b).cloned().collect()).collect()
}
