//! The programs: how each is started, what of its output counts, and what becomes of it when rail 0 dies.
//!
//! The client runs on A, the server on B; 10.77.0 is the management network, 10.77.1 is rail 0.

use super::outline::Compared;
use crate::guest::Program;
use crate::lab::Listens;
use crate::trial::ServerEnd;

/// What a cut of rail 0 does to a program under the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing that the program could see.
    Comes,
    /// With atomics: an error where the shim says that a result is lost, else nothing.
    Atomics,
    /// It ends as it does without the shim, and the shim has said why, in a line with these words.
    Unprotected(&'static str),
}

/// One program with its options.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name in scenarios.
    pub slug: String,
    /// Command as people know it.
    pub title: String,
    /// Debian's package.
    pub package: &'static str,
    /// Started first.
    pub server: Program,
    /// How it says that it is ready.
    pub listens: Listens,
    /// When it is over.
    pub server_end: ServerEnd,
    /// Started once the server listens.
    pub client: Program,
    /// What of the output two runs must have in common.
    pub compared: Compared,
    /// Lines of the output in which something else varies too.
    pub varies: &'static [&'static str],
    /// Queue pairs of each end.
    pub qps: u64,
    /// RoCE packets on rail 0 after protection, until the cut, at most.
    pub packets: u64,
    /// What the cut does.
    pub expected: Expected,
    /// By what it connects.
    pub connects: Connects,
    /// What it needs that others do not.
    pub unusual: Unusual,
}

/// What a row needs beside its two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusual {
    /// Nothing.
    Nothing,
    /// Files on both hosts; ranks of both hosts speak through the client, and wait for a file.
    Mpi,
    /// A route. It has one name for its peer, and speaks to it by TCP too: that connection, at this port, goes over the management network.
    Tcp(u16),
}

/// How a program's queue pairs are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connects {
    /// It exchanges their numbers itself.
    Itself,
    /// By librdmacm, whose messages go over rail 0 too.
    Rdmacm,
}

impl Row {
    fn new(title: &str, package: &'static str, server: &str, client: &str) -> Row {
        let slug = title.replace("--", "").replace(" -", "-").replace(' ', "-");
        Row {
            slug,
            title: title.to_owned(),
            package,
            server: Program::words(server),
            listens: Listens::Cm,
            server_end: ServerEnd::Itself,
            client: Program::words(client),
            compared: Compared::Words,
            varies: &[],
            qps: 1,
            packets: 1000,
            expected: Expected::Comes,
            connects: Connects::Rdmacm,
            unusual: Unusual::Nothing,
        }
    }

    /// Of programs that are not told in words.
    pub fn special(title: &str, package: &'static str, server: Program, client: Program) -> Row {
        Row { server, client, connects: Connects::Itself, ..Row::new(title, package, "", "") }
    }

    /// With a variable for both ends.
    pub fn env(mut self, name: &str, value: &str) -> Row {
        self.server = self.server.env(name, value);
        self.client = self.client.env(name, value);
        self
    }

    /// The shim's switches that it needs, as words.
    pub fn switches(&self) -> Option<String> {
        let shims = self.client.env.iter().filter(|(name, _)| name.starts_with("SHIFT_"));
        shims.map(|(name, value)| format!("with {name}={value}")).reduce(|all, next| format!("{all}, {next}"))
    }

    /// It listens by TCP, and connects its queue pairs itself.
    fn listens(mut self, port: u16) -> Row {
        (self.listens, self.connects) = (Listens::Tcp(port), Connects::Itself);
        self
    }

    /// It listens by TCP, and connects its queue pairs by librdmacm.
    fn listens_for_rdmacm(mut self, port: u16) -> Row {
        self.listens = Listens::Tcp(port);
        self
    }

    fn qps(mut self, qps: u64) -> Row {
        self.qps = qps;
        self
    }

    fn expected(mut self, expected: Expected) -> Row {
        self.expected = expected;
        self
    }
}

const PERFTEST_PORT: u16 = 18515;
const PINGPONG_PORT: u16 = 18515;
const QPERF_PORT: u16 = 19765;

/// A run of perftest of one to three seconds: options, and what differs from a plain one.
fn perftest(tool: &str, options: &str, load: &str) -> Row {
    let command = format!("/usr/bin/{tool} -d rxe0 {load} {options}");
    let title = format!("{tool} {options}");
    Row::new(title.trim(), "perftest", &command, &format!("{command} 10.77.0.2")).listens(PERFTEST_PORT)
}

/// The same, connected by librdmacm over rail 0.
fn perftest_by_cm(tool: &str, load: &str) -> Row {
    let command = format!("/usr/bin/{tool} -d rxe0 {load} -R");
    Row::new(&format!("{tool} -R"), "perftest", &command, &format!("{command} 10.77.1.2"))
}

fn perftests() -> Vec<Row> {
    let bulk = "-s 65536 -n 1500";
    let small = "-s 64 -n 2000";
    let atomic = "-n 8000";
    let mut rows = vec![
        perftest("ib_write_bw", "", bulk),
        perftest("ib_send_bw", "", bulk),
        perftest("ib_read_bw", "", bulk),
        perftest("ib_write_lat", "", small),
        perftest("ib_send_lat", "", small),
        perftest("ib_read_lat", "", small),
        perftest("ib_atomic_bw", "", atomic).expected(Expected::Atomics),
        perftest("ib_atomic_lat", "", "-n 4000").expected(Expected::Atomics),
    ];
    for tool in ["ib_write_bw", "ib_send_bw", "ib_read_bw"] {
        rows.push(perftest(tool, "--use_old_post_send", bulk));
        // Little under way at a time: what arms the queue pairs waits behind it, and the run is to go on after that.
        rows.push(perftest(tool, "-q 8", "-s 16384 -n 1500 -t 16").qps(8));
        rows.push(perftest_by_cm(tool, bulk));
        if tool != "ib_read_bw" {
            rows.push(perftest(tool, "-b", "-s 65536 -n 800"));
        }
    }
    rows.push(perftest("ib_send_bw", "--use-srq", bulk));
    rows.push(perftest("ib_send_bw", "-e", bulk));
    rows.push(perftest("ib_send_bw", "-c UD", "-s 1024 -n 8000").expected(Expected::Unprotected("IBV_QPT_UD")));
    rows
}

impl Row {
    fn shape(mut self) -> Row {
        self.compared = Compared::Shape;
        self
    }

    fn varies(mut self, lines: &'static [&'static str]) -> Row {
        self.varies = lines;
        self
    }

    fn served_for_ever(mut self) -> Row {
        self.server_end = ServerEnd::Killed;
        self
    }
}

fn examples() -> Vec<Row> {
    let pingpong = |tool: &str, options: &str| {
        let command = format!("/usr/bin/{tool} -d rxe0 -g 1 {options}");
        Row::new("", "ibverbs-utils", &command, &format!("{command} 10.77.0.2")).listens(PINGPONG_PORT)
    };
    let named = |mut row: Row, title: &str| {
        let Row { slug, .. } = Row::new(title, "", "", "");
        (row.slug, row.title) = (slug, title.to_owned());
        row
    };
    let rping = "-a 10.77.1.2 -C 1000 -S 1000 -V";
    let stream = "-S 65536 -C 700";
    vec![
        named(pingpong("ibv_rc_pingpong", "-n 6000"), "ibv_rc_pingpong"),
        named(pingpong("ibv_rc_pingpong", "-n 4000 -e"), "ibv_rc_pingpong -e"),
        named(pingpong("ibv_srq_pingpong", "-n 4000"), "ibv_srq_pingpong").qps(16),
        Row::new("rping", "rdmacm-utils", &format!("/usr/bin/rping -s {rping}"), &format!("/usr/bin/rping -c {rping}"))
            .varies(&["DISCONNECT EVENT"]),
        Row::new(
            "rstream",
            "rdmacm-utils",
            &format!("/usr/bin/rstream -b 10.77.1.2 {stream}"),
            &format!("/usr/bin/rstream -s 10.77.1.2 {stream}"),
        ),
    ]
}

fn qperf() -> Vec<Row> {
    let row = |test: &str| {
        Row::new(
            &format!("qperf {test}"),
            "qperf",
            "/usr/bin/qperf",
            &format!("/usr/bin/qperf 10.77.1.2 -cm1 -t 3 {test}"),
        )
        .listens_for_rdmacm(QPERF_PORT)
        .served_for_ever()
        .shape()
    };
    let over_management = |row: Row| Row { unusual: Unusual::Tcp(QPERF_PORT), ..row };
    vec![over_management(row("rc_bw")), over_management(row("rc_lat"))]
}

fn frameworks() -> Vec<Row> {
    let ucx = |test: &str, load: &str| {
        let command = format!("/usr/bin/ucx_perftest -x rc_verbs -d rxe0:1 -t {test} {load} -f");
        let row = Row::new(
            &format!("ucx_perftest -x rc_verbs -t {test}"),
            "ucx-utils",
            &command,
            &format!("{command} 10.77.0.2"),
        );
        row.listens(13337).shape().varies(&["Accepted connection from"])
    };
    let fi = "/usr/bin/fi_pingpong -p verbs -e msg -d rxe0 -S 4096 -I 3000";
    vec![
        ucx("am_bw", "-D bcopy -s 4096 -n 6000"),
        ucx("put_bw", "-D zcopy -s 4096 -n 6000"),
        ucx("am_lat", "-s 64 -n 3000"),
        Row::new("fi_pingpong -p verbs", "libfabric-bin", fi, &format!("{fi} 10.77.0.2")).listens_for_rdmacm(47592),
    ]
}

/// All of them.
pub fn rows() -> Vec<Row> {
    [perftests(), examples(), qperf(), frameworks(), vec![super::mpi::row()]].into_iter().flatten().collect()
}
