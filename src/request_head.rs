//! A request without its body, for functions of users.

use http::{Extensions, HeaderMap, Method, Request, Uri};

/// A request without its body, as a function of yours sees it.
///
/// ```
/// use tower_orgkey::RequestHead;
///
/// fn tenant_of(head: RequestHead<'_>) -> Option<String> {
///     let host = head.headers.get("host")?.to_str().ok()?;
///     Some(host.split_once('.')?.0.to_owned())
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI as the service sees it: under `nest`, without the prefix.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The extensions, where a server stores information about the connection.
    pub extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// Borrows the head of a request.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}
