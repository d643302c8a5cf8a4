//! `pgrls`, a linter for policies, judges the tables of the guide. Its prover does not read their policies: `nullif` and a
//! subquery are outside of what it decides.

use crate::cluster::Database;
use crate::python;

/// Whether it has no remark, and what it prints.
async fn pgrls(database: &Database) -> (bool, String) {
    let mut command = python::program("pgrls");
    let url = format!(
        "postgres://postgres@{}/{}",
        Database::addr(),
        database.name()
    );
    command.args(["lint", "--fail-on", "info", "--database-url", &url]);
    let output = python::output(command).await;
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[tokio::test]
async fn pgrls_agrees_on_the_tables() {
    let database = Database::new(&[]).await;
    let (is_sound, text) = pgrls(&database).await;
    assert!(is_sound, "{text}");
    let hole = "drop policy notes_of_no_other_org on notes; create policy oops on notes to app using (true)";
    let mut admin = database.admin().await;
    sqlx::raw_sql(hole).execute(&mut admin).await.unwrap();
    let (is_sound, text) = pgrls(&database).await;
    assert!(!is_sound && text.contains("public.notes"), "{text}");
}
