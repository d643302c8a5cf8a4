//! A PostgreSQL server for all tests of the binary, and a PgBouncer for one.
//!
//! A shell starts each program and waits for the end of its standard input, which the kernel closes when this process ends,
//! however it ends. It then stops the program and removes its directory.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool};

/// The SQL of the guide: the roles, and the tables.
static GUIDE: LazyLock<[&str; 2]> = LazyLock::new(|| {
    let blocks = include_str!("../../src/guide.md").split("```sql\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    blocks.try_into().unwrap()
});

/// The programs refuse to run as root.
const AS_POSTGRES: &str = r#"
set -e
as=
[ "$(id -u)" != 0 ] || as="setpriv --reuid=postgres --regid=postgres --init-groups --"
"#;

const POSTGRES: &str = r#"
[ "$(id -u)" != 0 ] || chown postgres "$dir"
$as "$bin/initdb" --pgdata="$dir/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >"$dir/log" 2>&1
$as "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
    -c max_connections=300 -c log_statement=none >>"$dir/log" 2>&1 &
cat >/dev/null
kill -QUIT $!
wait
rm -rf "$dir"
"#;

const PGBOUNCER: &str = r#"
[ "$(id -u)" != 0 ] || chown -R postgres "$dir"
$as "$bin/pgbouncer" -q "$dir/pgbouncer.ini" >"$dir/log" 2>&1 &
cat >/dev/null
kill -KILL $!
wait
rm -rf "$dir"
"#;

/// A running program.
pub(crate) struct Program {
    _shell: Child,
    dir: PathBuf,
    addr: SocketAddr,
}

impl Program {
    fn start(script: &str, bin: &Path, configure: impl FnOnce(&Path, SocketAddr)) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("orgkey-sqlx-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let addr = free_port();
        configure(&dir, addr);
        let shell = Command::new("sh")
            .arg("-c")
            .arg(format!("{AS_POSTGRES}{script}"))
            .env("bin", bin)
            .env("dir", &dir)
            .env("port", addr.port().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            _shell: shell,
            dir,
            addr,
        }
    }

    async fn connect(&self, options: &PgConnectOptions) -> PgConnection {
        // Attempts instead of a deadline: each waits for the connection to be refused first.
        for _ in 0..600 {
            if let Ok(connection) = options.connect().await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(self.dir.join("log"));
        panic!("the server did not start: {log:?}");
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// The directory with this program.
fn directory_of(program: &str, package: &str) -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut candidates: Vec<PathBuf> = debian
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .collect();
    candidates.sort();
    candidates.push("/usr/sbin".into());
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates.extend(std::env::split_paths(&path));
    let found = candidates
        .into_iter()
        .find(|dir| dir.join(program).exists());
    found.unwrap_or_else(|| panic!("no program {program}: `./test` installs the package {package}"))
}

static POSTGRES_SERVER: LazyLock<Program> =
    LazyLock::new(|| Program::start(POSTGRES, &directory_of("initdb", "postgresql"), |_, _| {}));

/// A database with the tables of the guide.
pub(crate) struct Database {
    name: String,
}

impl Database {
    /// With two notes and a comment of each of these organizations.
    pub(crate) async fn new(organizations: &[&str]) -> Self {
        let database = Self::empty().await;
        let mut owner = database.owner().await;
        sqlx::raw_sql(GUIDE[1]).execute(&mut owner).await.unwrap();
        let rows = "with org as (select set_config('app.org', $1, true) as org),
                added as (insert into notes (org, title)
                    select org, org || ' ' || number from org, generate_series(1, 2) number returning org, id)
            insert into comments (org, note_id, body) select org, min(id), org from added group by org";
        let mut admin = database.admin().await;
        for org in organizations {
            sqlx::query(rows)
                .bind(org)
                .execute(&mut admin)
                .await
                .unwrap();
        }
        database
    }

    pub(crate) async fn empty() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        static ROLES_MADE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
        let server = &*POSTGRES_SERVER;
        let options = options(server.addr, "postgres", "postgres");
        let mut admin = server.connect(&options).await;
        ROLES_MADE
            .get_or_init(|| async {
                let mut admin = server.connect(&options).await;
                sqlx::raw_sql(GUIDE[0]).execute(&mut admin).await.unwrap();
            })
            .await;
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let create = AssertSqlSafe(format!("create database {name} owner app_owner"));
        sqlx::query(create).execute(&mut admin).await.unwrap();
        Self { name }
    }

    pub(crate) fn addr() -> SocketAddr {
        POSTGRES_SERVER.addr
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How this role connects to the database at this address, which may be that of a proxy.
    pub(crate) fn options(&self, addr: SocketAddr, role: &str) -> PgConnectOptions {
        options(addr, role, &self.name)
    }

    /// A superuser, who sees all rows.
    pub(crate) async fn admin(&self) -> PgConnection {
        self.options(Self::addr(), "postgres")
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn owner(&self) -> PgConnection {
        let mut owner = self.admin().await;
        sqlx::raw_sql("set role app_owner")
            .execute(&mut owner)
            .await
            .unwrap();
        owner
    }

    /// A pool of the role of the service.
    pub(crate) async fn pool(&self, connections: u32) -> PgPool {
        self.pool_at(Self::addr(), connections).await
    }

    /// A pool of one connection of this role.
    pub(crate) async fn pool_of(&self, role: &str) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(1);
        let options = self.options(Self::addr(), role);
        pool.connect_with(options).await.unwrap()
    }

    pub(crate) async fn pool_at(&self, addr: SocketAddr, connections: u32) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(connections);
        pool.connect_with(self.options(addr, "app")).await.unwrap()
    }

    /// A `PgBouncer` in transaction mode, with one connection to the database.
    pub(crate) async fn bouncer(&self) -> Bouncer {
        let server = Self::addr();
        let bin = directory_of("pgbouncer", "pgbouncer");
        let program = Program::start(PGBOUNCER, &bin, |dir, addr| {
            let settings = format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\n\
                 default_pool_size = 1\nignore_startup_parameters = extra_float_digits\n",
                server.port(),
                addr.port(),
                users = dir.join("users").display(),
            );
            std::fs::write(dir.join("pgbouncer.ini"), settings).unwrap();
            std::fs::write(dir.join("users"), "\"app\" \"\"\n").unwrap();
        });
        program.connect(&self.options(program.addr, "app")).await;
        Bouncer(program)
    }
}

pub(crate) struct Bouncer(Program);

impl Bouncer {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.addr
    }
}

fn options(addr: SocketAddr, role: &str, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&addr.ip().to_string())
        .port(addr.port())
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .username(role)
        .database(database)
}
