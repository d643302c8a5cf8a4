//! A database per organization: `OrgSettings` loads the pool of the key's organization once, and keeps it.

use axum::{Router, routing::get};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{ApiKeyLayer, OrgCode, Rejection};

/// `database` looks the database of an organization up. Do not build its name from the code, which may contain any visible
/// ASCII character.
pub fn app<F>(auth: ApiKeyLayer, database: F) -> Router
where
    F: Fn(&OrgCode) -> Option<PgConnectOptions> + Clone + Send + Sync + 'static,
{
    let load = move |org: OrgCode| {
        let options = database(&org);
        async move {
            let options = options.ok_or_else(|| SettingsError::unavailable("no database"))?;
            let pool = PgPoolOptions::new().max_connections(4);
            let pool = pool.connect_with(options).await;
            pool.map_err(SettingsError::unavailable)
        }
    };
    let pools = OrgSettingsLayer::new(&auth.handle(), settings_fn(load));
    Router::new()
        .route("/notes", get(notes))
        .route_layer(pools)
        .route_layer(auth)
}

async fn notes(pool: OrgSettings<PgPool>) -> Result<String, Rejection> {
    let titles: Result<Vec<String>, _> = sqlx::query_scalar("select org from notes order by id")
        .fetch_all(&*pool)
        .await;
    titles
        .map(|titles| titles.join(" "))
        .map_err(|_| Rejection::internal())
}
