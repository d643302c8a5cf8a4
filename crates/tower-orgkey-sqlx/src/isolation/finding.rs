macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What is wrong with the database.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FindingKind {
            $($(#[$doc])* $kind,)*
        }

        impl FindingKind {
            /// All kinds, in the order of reports.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Returns the stable name.
            ///
            /// ```
            /// use tower_orgkey_sqlx::isolation::FindingKind;
            ///
            /// assert_eq!(FindingKind::BypassRls.name(), "bypass-rls");
            /// ```
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// The role is a superuser, which sees all rows.
    Superuser = "superuser",
    /// The role has the attribute `BYPASSRLS`.
    BypassRls = "bypass-rls",
    /// The role has `REPLICATION`, has `CREATEROLE` before `PostgreSQL` 16, or has the rights of `pg_execute_server_program`,
    /// `pg_read_server_files` or `pg_write_server_files`.
    ServerAccess = "server-access",
    /// `set role` or `reset role` takes a role that is a superuser, has `BYPASSRLS` or [`ServerAccess`](Self::ServerAccess);
    /// or whose rights the current role does not inherit, and that owns a table that is not forced, has a policy that does
    /// not depend on the organization, or can use a relation without policies.
    ReachableRole = "reachable-role",
    /// The server has a version in which cached plans can ignore policies (CVE-2024-10976).
    OldServer = "old-server",
    /// A new session has an organization already, by `alter role`, `alter database` or the options of the connection: statements
    /// outside of a transaction see its rows.
    OrganizationPreset = "organization-preset",
    /// A table has no row security. Tables that all organizations share are exceptions by name.
    RowSecurityOff = "row-security-off",
    /// The role can use a partition directly, where the policies of its parent do not apply.
    Partition = "partition",
    /// The role has the rights of the owner of a table, to whom its policies do not apply without `FORCE`.
    NotForced = "not-forced",
    /// No permissive policy applies to the role, so that it sees no rows.
    NoPolicy = "no-policy",
    /// A permissive policy does not depend on the organization, and no restrictive policy with `current_setting('app.org'…)` does
    /// for the same command. The detail lists the commands. An expression depends on the organization if it has a column of
    /// the table and one of: `current_setting('app.org'…)`, a function whose own text has `'app.org'`, or another table with row
    /// security. Whether it compares them is not examined: only reading is probed.
    PolicyWithoutOrganization = "policy-without-organization",
    /// The role may `TRUNCATE` a table, which ignores policies.
    Truncate = "truncate",
    /// The role can use a materialized view, which has no policies.
    MaterializedView = "materialized-view",
    /// The role can use a foreign table, which has no policies.
    ForeignTable = "foreign-table",
    /// The role can use large objects, which have no policies. They are counted in the detail.
    LargeObject = "large-object",
    /// The role can use a view that reads with the rights of its owner, which is another role.
    OwnerView = "owner-view",
    /// The role can call a function that runs with the rights of another role (`SECURITY DEFINER`), or a trigger calls it.
    DefinerFunction = "definer-function",
    /// A table or view has a rule, whose actions run with the rights of the owner.
    Rule = "rule",
    /// A foreign key between two tables with row security does not include the organization. Foreign keys are checked without
    /// row security: a row can refer to one of another organization, and an error shows which rows exist.
    ForeignKey = "foreign-key",
    /// The role sees rows of a table without an organization, or with one that does not exist.
    RowsVisible = "rows-visible",
    /// It is unknown whether the role sees rows without an organization, because reading the table fails: a policy casts the
    /// empty text, for example (`nullif(current_setting('app.org', true), '')` is null). The detail is the SQLSTATE.
    ProbeFailed = "probe-failed",
}

/// One hole in the isolation of organizations.
///
/// [`IsolationReport::findings`](super::IsolationReport::findings) returns them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub(super) kind: FindingKind,
    pub(super) object: String,
    pub(super) detail: String,
}

impl Finding {
    /// Returns what is wrong.
    pub fn kind(&self) -> FindingKind {
        self.kind
    }

    /// Returns where: `public.notes`, `public.comments.comments_note_id_fkey`, `public.all_notes(integer)`, `role admin`,
    /// `session`, `database` or `server`, quoted as in SQL where that is needed.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Returns a hint for people. It may change in any version.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}
