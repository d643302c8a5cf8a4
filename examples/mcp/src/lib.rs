//! An MCP server with `rmcp`: two organizations see different tools, and only their own data.

use axum::Router;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::ToolCallContext;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ListToolsResult, PaginatedRequestParams,
    ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, tool, tool_router};
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{ApiKeyLayer, ConfigError, OrgContext};
use tower_orgkey_mcp::{McpSessions, McpTools};

/// Builds the application.
///
/// # Errors
///
/// If a tool is named twice.
pub fn app(auth: ApiKeyLayer) -> Result<Router, ConfigError> {
    let tools = McpTools::builder()
        .tool("list_invoices", ScopePolicy::new([["read:invoices"]]))
        .tool(
            "refund",
            ScopePolicy::new([["read:invoices", "write:payments"]]),
        )
        .build()?;
    let assistant = Assistant {
        tools: tools.clone(),
        router: Assistant::tool_router(),
    };
    // Sessions are for clients of the revisions before 2026-07-28.
    let config = StreamableHttpServerConfig::default();
    let sessions = LocalSessionManager::default().into();
    let mcp = StreamableHttpService::new(move || Ok(assistant.clone()), sessions, config);
    Ok(Router::new()
        .route_service("/mcp", mcp)
        .route_layer(tools)
        .route_layer(McpSessions::new())
        .route_layer(auth))
}

/// The server.
#[derive(Clone, Debug)]
pub struct Assistant {
    tools: McpTools,
    router: ToolRouter<Self>,
}

/// The arguments of `refund`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
struct Refund {
    /// The number of the invoice.
    invoice: u32,
}

/// Returns the organization of the HTTP request that a message arrived in.
fn organization(context: &RequestContext<RoleServer>) -> Result<OrgContext, ErrorData> {
    let parts = context.extensions.get::<http::request::Parts>();
    let org = parts.and_then(|parts| parts.extensions.get::<OrgContext>());
    org.cloned()
        .ok_or_else(|| ErrorData::internal_error("no organization", None))
}

#[tool_router]
#[allow(
    clippy::unused_self,
    clippy::needless_pass_by_value,
    reason = "the macro calls tools in this way"
)]
impl Assistant {
    #[tool(description = "Lists the invoices of the organization")]
    fn list_invoices(&self, context: RequestContext<RoleServer>) -> Result<String, ErrorData> {
        let org = organization(&context)?;
        Ok(format!("invoices of {}: 1, 2", org.org_code()))
    }

    #[tool(description = "Refunds an invoice of the organization")]
    fn refund(
        &self,
        Parameters(Refund { invoice }): Parameters<Refund>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let org = organization(&context)?;
        Ok(format!("refunded invoice {invoice} of {}", org.org_code()))
    }
}

impl ServerHandler for Assistant {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = ToolCallContext::new(self, request, context);
        self.router.call(call).await
    }

    /// Lists only what the caller may use.
    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let org = organization(&context)?;
        let mut tools: Vec<Tool> = self.router.list_all();
        self.tools.retain(&org, &mut tools, |tool| &tool.name);
        Ok(ListToolsResult::with_all_items(tools))
    }
}
