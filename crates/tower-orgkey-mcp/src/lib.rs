//! Organization API keys for servers of the Model Context Protocol (MCP), over streamable HTTP with axum: scopes by tool, and
//! sessions that belong to the key that began them. For servers built with `rmcp`, or without a library.
//!
//! ```
//! use axum::Router;
//! use tower_orgkey::ApiKeyLayer;
//! use tower_orgkey::scope::ScopePolicy;
//! use tower_orgkey_mcp::{McpSessions, McpTools};
//! # use tower_orgkey::{ConfigError, Verification, verifier_fn};
//! # fn mcp_service() -> axum::routing::MethodRouter { axum::routing::any(async || "") }
//! # fn app(auth: ApiKeyLayer) -> Result<Router, ConfigError> {
//!
//! let tools = McpTools::builder()
//!     .tool("list_reports", ScopePolicy::new([["read:reports"]]))
//!     .tool("refund", ScopePolicy::new([["write:payments"]]))
//!     .build()?;
//!
//! // From the inside out. Paths outside of `/mcp` need no key, such as `/.well-known/oauth-protected-resource`, which must be
//! // 404 for clients to use the configured key.
//! let app = Router::new()
//!     .route("/mcp", mcp_service())
//!     .route_layer(tools.clone())
//!     .route_layer(McpSessions::new())
//!     .route_layer(auth);
//! # Ok(app) }
//! # app(ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }))).unwrap();
//! ```
//!
//! # Revisions of the protocol
//!
//! | revision | sessions | headers |
//! |---|---|---|
//! | 2026-07-28 | none: each request stands alone | `Mcp-Method` and `Mcp-Name` must agree with the body if they are there |
//! | 2025-11-25 and before | `Mcp-Session-Id`, from the response to `initialize` | none |
//!
//! Both are served. A server that needs no sessions should switch them off (`legacy_session_mode` of `rmcp`), and then needs no
//! [`McpSessions`].
//!
//! # What a client sees
//!
//! | case | status | `code` of the problem document |
//! |---|---|---|
//! | the key lacks a scope of a tool | 403, with all scopes in the challenge | `insufficient-scope` |
//! | a tool without an entry | 403 | `insufficient-scope` |
//! | the session is unknown, or of another key | 404: the client begins a new one | `not-found` |
//! | the body is not one JSON-RPC message, or the headers contradict it | 400 | `mcp-message-malformed`, `mcp-header-mismatch` |
//! | the body is larger than [`max_body`](McpToolsBuilder::max_body) | 413 | `mcp-message-too-large` |
//!
//! # Lists of tools
//!
//! [`McpTools`] rejects calls. A server should also list only what the caller may use: [`McpTools::retain`] filters in the
//! handler of `tools/list`. The result must then have the `cacheScope` `private`, which is the default of `rmcp`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod message;
mod sessions;
mod tools;

pub use self::sessions::{McpSessions, McpSessionsService};
pub use self::tools::{McpTools, McpToolsBuilder, McpToolsService};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
