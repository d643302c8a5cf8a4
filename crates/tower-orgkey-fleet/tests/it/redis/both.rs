//! Scenarios that also run in memory.

use crate::engines::HostileServer;
use crate::scenarios;

#[tokio::test]
async fn fault_28_a_revocation_reaches_every_node() {
    scenarios::a_revocation_reaches_every_node(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_103_a_late_valid_answer_is_not_used() {
    scenarios::a_late_valid_answer_is_not_used(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_104_a_node_that_is_behind_asks_the_issuer() {
    scenarios::a_node_that_is_behind_asks_the_issuer(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_105_changed_results_are_not_used() {
    scenarios::changed_results_are_not_used(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_106_repeated_updates_lift_nothing() {
    scenarios::repeated_updates_lift_nothing(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_106_repeated_updates_apply_once() {
    scenarios::repeated_updates_apply_once(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_107_withheld_updates_do_not_count() {
    scenarios::withheld_updates_do_not_count(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_108_a_wrong_clock_shares_nothing() {
    scenarios::a_wrong_clock_shares_nothing(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_108_a_new_machine_uses_no_older_result() {
    scenarios::a_new_machine_uses_no_older_result(&HostileServer::start().await).await;
}

#[tokio::test]
async fn fault_109_a_cold_fleet_serves_known_keys() {
    scenarios::a_cold_fleet_serves_known_keys(&HostileServer::start().await).await;
}
