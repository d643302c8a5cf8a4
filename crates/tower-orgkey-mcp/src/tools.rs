use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_orgkey::observer::Requirement;
use tower_orgkey::scope::{Scope, ScopePolicy};
use tower_orgkey::{ConfigError, OrgContext, Rejection};
use tower_service::Service;

use crate::message::{Malformed, called_tool};

const DEFAULT_MAX_BODY: usize = 1024 * 1024;

/// How audit and usage name calls of tools without an entry.
const OPERATION: &str = "mcp:tools/call";

/// A layer that requires scopes by MCP tool. A tool without an entry is rejected, unless
/// [`other_tools_need_any_key`](McpToolsBuilder::other_tools_need_any_key) is set.
///
/// It reads every body, up to [`max_body`](McpToolsBuilder::max_body), and decides by it: a header alone never permits a call. A
/// batch of messages, which the protocol has no more, is rejected. Other methods of the protocol, such as `tools/list`, need a key with any scopes.
///
/// The audit and usage crates record a call as the route `mcp:tools/call:NAME`, or `mcp:tools/call` for a tool without an entry,
/// instead of the path that all messages have.
///
/// Place it inside of [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer). See the [crate](crate) for an example.
#[derive(Clone)]
#[must_use]
pub struct McpTools {
    shared: Arc<Shared>,
}

struct Shared {
    tools: HashMap<Box<str>, Tool>,
    others_pass: bool,
    max_body: usize,
}

#[derive(Debug)]
struct Tool {
    policy: ScopePolicy,
    /// How audit and usage name calls of it.
    operation: Arc<str>,
}

impl McpTools {
    /// Creates a builder without tools.
    pub fn builder() -> McpToolsBuilder {
        McpToolsBuilder {
            tools: Vec::new(),
            others_pass: false,
            max_body: DEFAULT_MAX_BODY,
        }
    }

    /// Returns whether the key of a request may call a tool. For handlers, and for tools that call others.
    ///
    /// ```
    /// use tower_orgkey::scope::ScopePolicy;
    /// use tower_orgkey::test_util::OrgContextBuilder;
    /// use tower_orgkey_mcp::McpTools;
    ///
    /// let tools = McpTools::builder()
    ///     .tool("refund", ScopePolicy::new([["write:payments"]]))
    ///     .build()?;
    /// let org = OrgContextBuilder::new("org_1").scopes(["read:payments"]).build();
    /// assert!(!tools.permits(&org, "refund"));
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn permits(&self, org: &OrgContext, tool: &str) -> bool {
        match self.shared.tools.get(tool) {
            Some(tool) => tool.policy.permits(org.scopes()),
            None => self.shared.others_pass,
        }
    }

    /// Removes the tools that the key of a request may not call. For the handler of `tools/list`.
    ///
    /// ```
    /// use tower_orgkey::scope::ScopePolicy;
    /// use tower_orgkey::test_util::OrgContextBuilder;
    /// use tower_orgkey_mcp::McpTools;
    ///
    /// let tools = McpTools::builder()
    ///     .tool("list_payments", ScopePolicy::new([["read:payments"]]))
    ///     .tool("refund", ScopePolicy::new([["write:payments"]]))
    ///     .build()?;
    /// let org = OrgContextBuilder::new("org_1").scopes(["read:payments"]).build();
    /// let mut listed = vec!["list_payments", "refund", "unknown"];
    /// tools.retain(&org, &mut listed, |name| name);
    /// assert_eq!(listed, ["list_payments"]);
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn retain<T>(&self, org: &OrgContext, tools: &mut Vec<T>, name: impl Fn(&T) -> &str) {
        tools.retain(|tool| self.permits(org, name(tool)));
    }

    /// Decides about a body, and records what it requires.
    fn rejection(&self, request: &http::request::Parts, body: &[u8]) -> Option<Rejection> {
        let context = match OrgContext::of(&request.extensions) {
            Ok(context) => context,
            Err(rejection) => return Some(rejection),
        };
        let name = match called_tool(&request.headers, body) {
            Ok(name) => name?,
            Err(malformed) => return Some(rejected(malformed)),
        };
        let tool = self.shared.tools.get(&*name);
        let is_met = match tool {
            Some(tool) => tool.policy.permits(context.scopes()),
            None => self.shared.others_pass,
        };
        if let Some(observation) = context.observation() {
            match tool {
                Some(Tool { policy, operation }) => {
                    observation.record_operation(Arc::clone(operation));
                    observation.record_requirement(Requirement::scopes(policy.clone(), is_met));
                }
                // Without the name, which the client chooses.
                None => observation.record_operation(OPERATION),
            }
        }
        // A policy without alternatives rejects every key, and names no scope.
        let required = tool.map(|tool| required(&tool.policy, context));
        (!is_met).then(|| Rejection::insufficient_scope(required.unwrap_or_default()))
    }
}

/// Returns the scopes of the alternative that the key comes closest to.
fn required(policy: &ScopePolicy, context: &OrgContext) -> Vec<String> {
    let missing = |names: &&[Scope]| {
        let held = context.scopes();
        names
            .iter()
            .filter(|name| !held.contains(name.as_str()))
            .count()
    };
    let nearest = policy.alternatives().min_by_key(missing);
    nearest
        .iter()
        .flat_map(|names| names.iter())
        .map(|name| name.as_str().to_owned())
        .collect()
}

fn rejected(malformed: Malformed) -> Rejection {
    match malformed {
        Malformed::Body => Rejection::custom(
            StatusCode::BAD_REQUEST,
            "mcp-message-malformed",
            "The body is not one JSON-RPC message, or has a member twice.",
        ),
        Malformed::Header => Rejection::custom(
            StatusCode::BAD_REQUEST,
            "mcp-header-mismatch",
            "The header Mcp-Method or Mcp-Name contradicts the body, or occurs twice.",
        ),
    }
}

impl fmt::Debug for McpTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpTools")
            .field("tools", &self.shared.tools)
            .field("others_pass", &self.shared.others_pass)
            .field("max_body", &self.shared.max_body)
            .finish()
    }
}

/// Configures [`McpTools`].
#[derive(Debug)]
#[must_use]
pub struct McpToolsBuilder {
    tools: Vec<(String, ScopePolicy)>,
    others_pass: bool,
    max_body: usize,
}

impl McpToolsBuilder {
    /// Requires these scopes of calls to a tool.
    pub fn tool(mut self, name: impl Into<String>, policy: ScopePolicy) -> Self {
        self.tools.push((name.into(), policy));
        self
    }

    /// Lets keys with any scopes call tools without an entry. They are rejected by default.
    pub fn other_tools_need_any_key(mut self) -> Self {
        self.others_pass = true;
        self
    }

    /// Sets the maximum size of a body in bytes: 1 MiB by default. The body is kept in memory.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If a tool is named twice, or the maximum size is 0.
    pub fn build(self) -> Result<McpTools, ConfigError> {
        if self.max_body == 0 {
            return Err(ConfigError::new("max_body", "must not be 0"));
        }
        let mut tools = HashMap::with_capacity(self.tools.len());
        for (name, policy) in self.tools {
            if tools.contains_key(&*name) {
                let problem = format!("`{name}` is named twice");
                return Err(ConfigError::new("tool", problem));
            }
            let operation = format!("{OPERATION}:{name}").into();
            tools.insert(name.into_boxed_str(), Tool { policy, operation });
        }
        let shared = Shared {
            tools,
            others_pass: self.others_pass,
            max_body: self.max_body,
        };
        Ok(McpTools {
            shared: Arc::new(shared),
        })
    }
}

impl<S> Layer<S> for McpTools {
    type Service = McpToolsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        McpToolsService {
            inner,
            tools: self.clone(),
        }
    }
}

/// The service of [`McpTools`].
#[derive(Clone, Debug)]
#[must_use]
pub struct McpToolsService<S> {
    inner: S,
    tools: McpTools,
}

impl<S> Service<Request> for McpToolsService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    /// Always ready: the inner service is made ready when the body was read, so that a slow client holds no permit of it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let inner = self.inner.clone();
        // Any body is read, whatever the method: the server behind may read it too.
        if request.method() != Method::POST && request.body().is_end_stream() {
            let rejection = OrgContext::of(request.extensions()).err();
            return match rejection {
                Some(rejection) => Box::pin(ready(Ok(rejection.into_response()))),
                None => Box::pin(inner.oneshot(request)),
            };
        }
        let tools = self.tools.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match Limited::new(body, tools.shared.max_body).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Ok(unread(&*error).into_response()),
            };
            let rejection = tools.rejection(&parts, &body).or_else(|| ended(&parts));
            if let Some(rejection) = rejection {
                return Ok(rejection.into_response());
            }
            let request = Request::from_parts(parts, Body::from(body));
            inner.oneshot(request).await
        })
    }
}

/// Returns the rejection of a request with a body that cannot be read.
fn unread(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Rejection {
    if error.is::<LengthLimitError>() {
        return Rejection::custom(
            StatusCode::PAYLOAD_TOO_LARGE,
            "mcp-message-too-large",
            "The message is larger than this server accepts.",
        );
    }
    rejected(Malformed::Body)
}

/// Returns why a key that was valid when the request arrived must not be used any more: the client may have taken long to send
/// the body. An invalid key gets 401 when it tries again.
fn ended(request: &http::request::Parts) -> Option<Rejection> {
    let context = OrgContext::of(&request.extensions).ok()?;
    (!context.is_still_valid()).then(|| Rejection::verifier_unavailable(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    use tower_orgkey::test_util::OrgContextBuilder;

    use super::*;

    fn service(
        tools: &McpTools,
    ) -> McpToolsService<
        impl Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    > {
        tools.layer(tower::service_fn(async |_: Request| {
            Ok(Response::new(Body::empty()))
        }))
    }

    async fn status(tools: &McpTools, method: &str, has_key: bool, body: &'static str) -> u16 {
        let mut request = Request::builder().method(method).uri("/mcp");
        if has_key {
            request = request.extension(OrgContextBuilder::new("org_1").scopes(["a"]).build());
        }
        let request = request.body(Body::from(body)).unwrap();
        service(tools)
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    #[tokio::test]
    async fn every_body_is_decided_about() {
        let none: [[&str; 1]; 0] = [];
        let tools = McpTools::builder()
            .tool("open", ScopePolicy::new([["a"]]))
            .tool("closed", ScopePolicy::new(none))
            .build()
            .unwrap();
        let open = r#"{"method":"tools/call","params":{"name":"open"}}"#;
        let closed = r#"{"method":"tools/call","params":{"name":"closed"}}"#;
        for method in ["POST", "PUT", "GET", "DELETE"] {
            assert_eq!(status(&tools, method, true, open).await, 200, "{method}");
            assert_eq!(status(&tools, method, true, closed).await, 403, "{method}");
            // Without a key there is no layer, or an anonymous caller.
            assert_ne!(status(&tools, method, false, open).await, 200, "{method}");
        }
        assert_eq!(status(&tools, "GET", true, "").await, 200);
        assert_ne!(status(&tools, "GET", false, "").await, 200);
        assert_eq!(status(&tools, "POST", true, "").await, 400);
    }
}
