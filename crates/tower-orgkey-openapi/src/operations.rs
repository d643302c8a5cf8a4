//! The operations of a document.

use std::collections::BTreeSet;

use utoipa::openapi::path::{Operation, PathItem, Paths};
use utoipa::openapi::security::SecurityRequirement;

use crate::SCHEME;

/// Sets of scopes, of which a key must hold one. An empty set is any key.
pub(crate) type Alternatives = BTreeSet<BTreeSet<String>>;

fn of_item(item: &PathItem) -> impl Iterator<Item = (&str, &Operation)> {
    let named = [
        ("GET", &item.get),
        ("PUT", &item.put),
        ("POST", &item.post),
        ("DELETE", &item.delete),
        ("OPTIONS", &item.options),
        ("HEAD", &item.head),
        ("PATCH", &item.patch),
        ("TRACE", &item.trace),
        ("QUERY", &item.query),
    ];
    let named = named.into_iter();
    let named = named.filter_map(|(method, operation)| Some((method, operation.as_ref()?)));
    let additional = item.additional_operations.iter();
    named.chain(additional.map(|(method, operation)| (method.as_str(), operation)))
}

fn of_item_mut(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let named = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
        &mut item.query,
    ];
    let additional = item.additional_operations.values_mut();
    named.into_iter().flatten().chain(additional)
}

/// Returns all operations with their method and path. A method is as the document has it, which need not be a valid one.
pub(crate) fn all(paths: &Paths) -> impl Iterator<Item = (&str, &str, &Operation)> {
    paths.paths.iter().flat_map(|(path, item)| {
        of_item(item).map(move |(method, operation)| (method, path.as_str(), operation))
    })
}

/// Returns all operations, in the same order.
pub(crate) fn all_mut(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths.paths.values_mut().flat_map(of_item_mut)
}

/// Returns the alternatives that `security` documents for keys of organizations, or `None` if it documents none.
pub(crate) fn documented(security: Option<&[SecurityRequirement]>) -> Option<Alternatives> {
    let mut alternatives = Alternatives::new();
    for requirement in security.into_iter().flatten() {
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
