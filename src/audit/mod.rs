//! The audit trail: one event for each request that the layer decided on, in the fields of OCSF.
