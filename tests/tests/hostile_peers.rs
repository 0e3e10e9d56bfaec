//! Hostile peers: none of their packets and messages crashes the coordinator, and honest clients
//! are still served.

use mezcal_common::message::client::{Attachment, ToClient, ToService};
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::wire::codec;
use mezcal_common::wire::endpoint::{FIRST_MESSAGE, Listener};
use mezcal_common::wire::tls::Credentials;
use mezcal_coordinator::client::Remote;
use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::lab::host_name;
use mezcal_tests::wait_for;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Milliseconds that `coordinator hosts` takes: the median of several, its own start included.
fn answer_time(cluster: &Cluster) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let begin = Instant::now();
            let out = cluster.run(&["hosts", "-p", "mezcal"]);
            assert_eq!(
                out.status.code(),
                Some(0),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            begin.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A QUIC v1 long header (RFC 9000 §17.2) that begins a handshake and never continues it, as
/// half-open clients send.
fn initial(seed: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend_from_slice(&u64::from(seed).to_be_bytes());
    packet.extend_from_slice(&[8, 9, 9, 9, 9, 9, 9, 9, 9, 0]);
    packet.extend_from_slice(&[0x44, 0xb0]);
    let mut random = seed | 1;
    packet.resize_with(length, || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    });
    packet
}

#[test]
fn noise_and_half_open_clients_do_not_keep_others_waiting() {
    let cluster = Cluster::running(2, 2);
    let calm = answer_time(&cluster);
    let (enter, address) = (cluster.lab.entrance(0), cluster.address());
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let noise = std::thread::spawn(move || {
        enter();
        let sockets: Vec<UdpSocket> = (0..200)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.connect(&address).expect("an address");
                socket
            })
            .collect();
        let mut sent = 0u32;
        while ended
            .recv_timeout(Duration::from_millis(20))
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            for (n, socket) in sockets.iter().enumerate() {
                sent += 1;
                let packet = match n % 4 {
                    0 => initial(n as u32, 1200),
                    1 => initial(sent, 1200),
                    2 => initial(sent, 60 + n),
                    // Neither a header nor a version.
                    _ => initial(sent, 400)[7..].to_vec(),
                };
                // Full buffers lose some packets, which does not matter.
                let _ = socket.send(&packet);
            }
        }
        sent
    });
    let busy = answer_time(&cluster);
    let mut run = cluster.start_run(&"{\"cmd\": \"true\"}\n".repeat(200), &["-q"]);
    let status = wait_for("the run ends", PATIENCE, || {
        run.try_wait().expect("our child")
    });
    end.send(()).expect("it listens");
    let sent = noise.join().expect("no panic");
    assert_eq!(status.code(), Some(0));
    eprintln!("hosts answers in {calm:.0} ms, and in {busy:.0} ms beside {sent} packets of noise");
    assert!(sent > 1000, "there was noise: {sent}");
    assert_eq!(cluster.connected().len(), 2, "the agents stayed");
    cluster.finish();
}

/// TLS with these credentials, or with only their root; and the name of the coordinator.
fn tls(identity: &Path, shown: bool, protocol: &str) -> (rustls::ClientConfig, String) {
    let chain: Vec<CertificateDer> = CertificateDer::pem_file_iter(identity.join("cert.pem"))
        .expect("a file")
        .map(|c| c.expect("a certificate"))
        .collect();
    let name = format!(
        "coordinator.{}.mezcal",
        Identity::from_der(&chain[0])
            .expect("a certificate of ours")
            .cluster
    );
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(identity.join("ca.pem")).expect("a root"))
        .expect("a root");
    let key = PrivateKeyDer::from_pem_file(identity.join("key.pem")).expect("a key");
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .expect("TLS 1.3")
    .with_root_certificates(roots);
    let mut crypto = match shown {
        true => builder
            .with_client_auth_cert(chain, key)
            .expect("a key that fits"),
        false => builder.with_no_client_auth(),
    };
    crypto.alpn_protocols = vec![protocol.into()];
    (crypto, name)
}

fn connecting(
    crypto: rustls::ClientConfig,
    name: &str,
    address: &str,
) -> (quinn::Endpoint, quinn::Connecting) {
    let config = quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(crypto).expect("TLS 1.3"),
    ));
    let endpoint =
        quinn::Endpoint::client("0.0.0.0:0".parse().expect("an address")).expect("a socket");
    let connecting = endpoint
        .connect_with(config, address.parse().expect("an address"), name)
        .expect("a configuration");
    (endpoint, connecting)
}

/// A connection with these credentials that sends nothing by itself.
async fn connect(
    identity: &Path,
    protocol: &str,
    address: &str,
) -> (quinn::Endpoint, quinn::Connection) {
    let (crypto, name) = tls(identity, true, protocol);
    let (endpoint, attempt) = connecting(crypto, &name, address);
    (endpoint, attempt.await.expect("a coordinator"))
}

/// Counts the session tickets of a coordinator, with which a session could be resumed without
/// another check of the certificate.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}
    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }
    fn set_tls12_session(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls12ClientSessionValue,
    ) {
    }
    fn tls12_session(
        &self,
        _: &rustls::pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}
    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}

#[test]
fn nobody_gets_in_without_a_certificate_and_no_session_is_taken_up_again() {
    let cluster = Cluster::running(1, 1);
    let user = cluster.path("pki/users/okazaki");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    cluster.lab.entrance(0)();
    runtime.block_on(async {
        let (crypto, name) = tls(&user, false, "mezcal-client/1");
        let (_endpoint, attempt) = connecting(crypto, &name, &cluster.address());
        // In TLS 1.3 the connecting side is done before the other side has judged it (RFC 8446,
        // E.1.2).
        if let Ok(connection) = attempt.await {
            let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is noticed");
            // Alert 116: certificate_required.
            assert!(
                matches!(&closed, quinn::ConnectionError::ConnectionClosed(c) if u64::from(c.error_code) == 0x100 + 116),
                "{closed}"
            );
        }
        let tickets = Arc::new(Tickets::default());
        let (mut crypto, name) = tls(&user, true, "mezcal-client/1");
        crypto.resumption = rustls::client::Resumption::store(tickets.clone());
        crypto.enable_early_data = true;
        let (_endpoint, attempt) = connecting(crypto.clone(), &name, &cluster.address());
        let connection = attempt.await.expect("a coordinator");
        let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
        // A greeting (the recorded one of a client), and the welcome that it gets.
        send.write_all(&frame(&[0, 1, 1, 5, b'0', b'.', b'1', b'.', b'0'])).await.expect("written");
        let mut welcome = [0; 6];
        receive.read_exact(&mut welcome).await.expect("a welcome");
        assert_eq!(tickets.0.load(Ordering::Relaxed), 0, "tickets would outlive a revocation");
        let (_endpoint, attempt) = connecting(crypto.clone(), &name, &cluster.address());
        assert!(attempt.into_0rtt().is_err(), "nothing can be sent before the handshake, so nothing can be replayed");
    });
    cluster.finish();
}

/// Bytes from a peer that has a certificate.
struct Sent {
    what: &'static str,
    bytes: Vec<u8>,
    /// The stream ends after it.
    ends: bool,
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.push(1);
    frame.extend_from_slice(body);
    frame
}

#[test]
fn frames_that_are_none_end_the_connection_of_whoever_sent_them_and_no_other() {
    let cluster = Cluster::running(2, 2);
    let long_ago = [0u8; 64];
    let table = [
        Sent {
            what: "a frame that claims 4 GiB",
            bytes: vec![0xff, 0xff, 0xff, 0xff, 1],
            ends: false,
        },
        Sent {
            what: "a frame one byte over the limit",
            bytes: [&(1u32 << 20 | 1).to_le_bytes()[..], &[1]].concat(),
            ends: false,
        },
        Sent {
            what: "an unknown codec",
            bytes: vec![1, 0, 0, 0, 9, 0],
            ends: false,
        },
        Sent {
            what: "an unknown message",
            bytes: frame(&[250, 1, 2, 3]),
            ends: false,
        },
        Sent {
            what: "a message with something behind it",
            bytes: frame(&[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ends: false,
        },
        Sent {
            what: "a string that claims 2^62 bytes",
            bytes: frame(&[0, 1, 1, 253, 0, 0, 0, 0, 0, 0, 0, 64]),
            ends: false,
        },
        Sent {
            what: "a first message that is no greeting",
            bytes: frame(&[7]),
            ends: false,
        },
        Sent {
            what: "zeros",
            bytes: vec![0; 1 << 20],
            ends: false,
        },
        Sent {
            what: "nothing",
            bytes: vec![],
            ends: true,
        },
        Sent {
            what: "half a header",
            bytes: vec![4, 0],
            ends: true,
        },
        Sent {
            what: "half a frame",
            bytes: frame(&long_ago)[..20].to_vec(),
            ends: true,
        },
    ];
    let users = cluster.path("pki/users/okazaki");
    let agent = cluster.path("pki/agents").join(host_name(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    cluster.lab.entrance(0)();
    runtime.block_on(async {
        for (identity, protocol) in [(&users, "mezcal-client/1"), (&agent, "mezcal-agent/1")] {
            for Sent { what, bytes, ends } in &table {
                let (_endpoint, connection) = connect(identity, protocol, &cluster.address()).await;
                let (mut send, _receive) = connection.open_bi().await.expect("a stream");
                // The peer may refuse it before all of it has arrived.
                let _ = send.write_all(bytes).await;
                if *ends {
                    let _ = send.finish();
                }
                let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
                let closed = closed.unwrap_or_else(|_| panic!("{protocol}: {what} goes unnoticed"));
                let said = matches!(closed, quinn::ConnectionError::ApplicationClosed(_));
                assert!(said, "{protocol}: {what}: {closed}");
            }
            // A client that begins a frame and never ends it holds up only itself.
            let (_endpoint, connection) = connect(identity, protocol, &cluster.address()).await;
            let (mut send, _receive) = connection.open_bi().await.expect("a stream");
            send.write_all(&frame(&long_ago)[..20])
                .await
                .expect("written");
            let mut run = cluster.start_run(&"{\"cmd\": \"true\"}\n".repeat(100), &["-q"]);
            let status = wait_for("the run ends", PATIENCE, || {
                run.try_wait().expect("our child")
            });
            assert_eq!(status.code(), Some(0));
        }
        for (identity, protocol) in [(&agent, "mezcal-client/1"), (&users, "mezcal-agent/1")] {
            let (_endpoint, connection) = connect(identity, protocol, &cluster.address()).await;
            let closed = tokio::time::timeout(PATIENCE, connection.closed())
                .await
                .expect("a wrong role is noticed");
            assert!(
                closed.to_string().contains("may not use"),
                "{protocol}: {closed}"
            );
        }
    });
    assert_eq!(cluster.connected().len(), 2, "the agents stayed");
    cluster.finish();
}

/// A coordinator that is killed in the middle of a handshake and comes back looks like this: no
/// reset, and no message (RFC 9000 §10.3).
#[test]
fn a_coordinator_that_never_says_a_word_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (authority, _) = mezcal_certs::Authority::create("silent").expect("created");
    for (role, name) in [(Role::Coordinator, ""), (Role::User, "okazaki")] {
        authority
            .issue(role, name, 1)
            .expect("issued")
            .write(&dir.path().join(role.as_str()))
            .expect("written");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let credentials = Credentials::load(&dir.path().join("coordinator"), Role::Coordinator).expect("good ones");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(any, &credentials, &mezcal_coordinator::service::PROTOCOLS).expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let silent = async {
            let peer = listener.accept().await.expect("open").complete().await.expect("a good certificate");
            // It keeps the connection, and does nothing else.
            let _ = peer.closed().await;
            std::future::pending::<()>().await
        };
        let begin = Instant::now();
        let identity = dir.path().join("user");
        let refused = tokio::select! {
            connected = Remote::connect(&address, &identity) => connected.err().expect("no welcome has come"),
            () = silent => unreachable!("it waits for ever"),
        };
        assert!(refused.message.contains("no message within 10s"), "{}", refused.message);
        assert!(begin.elapsed() < 2 * FIRST_MESSAGE, "{:?}", begin.elapsed());
    });
}

/// Writes this request this many times, until that is done or the peer accepts no more for a while;
/// counts the requests on the way.
async fn flood(
    mut to: quinn::SendStream,
    request: ToService,
    count: usize,
    sent: Arc<AtomicUsize>,
) {
    const TOGETHER: usize = 1000;
    let mut bytes = Vec::new();
    (0..TOGETHER).for_each(|_| codec::encode_frame(&mut bytes, &request).expect("small"));
    for _ in 0..count / TOGETHER {
        // The caller notices a connection that the coordinator has ended.
        if to.write_all(&bytes).await.is_err() {
            return;
        }
        sent.fetch_add(TOGETHER, Ordering::Relaxed);
    }
}

/// Waits until a count has not changed for three seconds.
async fn stalls(count: &AtomicUsize) {
    let (mut before, mut since, begin) = (usize::MAX, Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        let now = count.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        assert!(begin.elapsed() < 2 * PATIENCE, "it takes ever more: {now}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_client_that_reads_no_answers_leaves_the_coordinator_small() {
    const REQUESTS: usize = 2_000_000;
    let cluster = Cluster::running(2, 2);
    let user = cluster.path("pki/users/sato");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.coordinator_pid()))
            .expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a resident set");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<usize>()
            .expect("a number")
            / 1024
    };
    let before = resident();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    cluster.lab.entrance(0)();
    runtime.block_on(async {
        let mut floods = Vec::new();
        for request in [ToService::Hosts, ToService::Close { batch: mezcal_common::model::ids::BatchId::random() }] {
            let (endpoint, connection) = connect(&user, "mezcal-client/1", &cluster.address()).await;
            let (mut send, receive) = connection.open_bi().await.expect("a stream");
            send.write_all(&frame(&[0, 1, 1, 5, b'0', b'.', b'1', b'.', b'0'])).await.expect("written");
            let sent = Arc::new(AtomicUsize::new(0));
            tokio::spawn(flood(send, request, REQUESTS, sent.clone()));
            floods.push((endpoint, connection, receive, sent));
        }
        for (.., sent) in &floods {
            stalls(sent).await;
        }
        let after = resident();
        let taken: Vec<usize> = floods.iter().map(|(.., sent)| sent.load(Ordering::Relaxed)).collect();
        eprintln!("resident: {before} MiB, {after} MiB with {taken:?} of {REQUESTS} requests sent and no answer read");
        assert!(after <= 100, "{after} MiB");
        assert!(taken.iter().all(|sent| *sent > 0 && *sent < REQUESTS), "what is not read stays with its sender: {taken:?}");
        let calm = answer_time(&cluster);
        assert!(calm < 5000.0, "others are served: {calm} ms");
        // The coordinator reads again from a client that reads again.
        let (_, connection, mut receive, sent) = floods.pop().expect("two of them");
        let goes_on = async {
            while sent.load(Ordering::Relaxed) < taken[1] + 10_000 {
                assert!(receive.read_chunk(1 << 16, true).await.is_ok_and(|chunk| chunk.is_some()));
            }
        };
        tokio::time::timeout(PATIENCE, goes_on).await.expect("it goes on");
        drop(connection);
    });
    cluster.finish();
}

/// Sets this limit of descriptors for this process, or another one, as far as permitted.
fn descriptors(pid: i32, most: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both point to a valid limit, or to none.
    unsafe {
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = most.min(limit.rlim_max);
        libc::prlimit(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut(),
        );
    }
}

/// Number of entries of a process's directory in /proc: its threads, its descriptors.
fn count_of(pid: i32, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/{what}"))
        .expect("it runs")
        .count()
}

#[test]
fn half_open_requests_end_and_livez_answers_meanwhile() {
    const HALF_OPEN: usize = 2000;
    let mut cluster = Cluster::new(1, 1);
    cluster.set_http("127.0.0.1:7480");
    let cluster = cluster.start();
    descriptors(0, HALF_OPEN as u64 + 500);
    let address = cluster.http_address();
    let before = count_of(cluster.coordinator_pid(), "fd");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    cluster.lab.entrance(0)();
    runtime.block_on(async {
        let begin = Instant::now();
        let (ended, longest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..HALF_OPEN {
            let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
            // It may have been closed already, in favour of others.
            let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n").await;
            let (ended, longest, begin) = (ended.clone(), longest.clone(), Instant::now());
            tokio::spawn(async move {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                longest.fetch_max(begin.elapsed().as_millis() as usize, Ordering::Relaxed);
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut answered = 0;
        while ended.load(Ordering::Relaxed) < HALF_OPEN {
            let alive = async {
                let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
                stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("written");
                let mut said = String::new();
                stream.read_to_string(&mut said).await.expect("an answer");
                assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("ok\n"), "{said}");
            };
            tokio::time::timeout(Duration::from_secs(5), alive).await.expect("it is alive");
            answered += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let left = HALF_OPEN - ended.load(Ordering::Relaxed);
            assert!(begin.elapsed() < 2 * PATIENCE, "{left} are open after {:?}", begin.elapsed());
        }
        let longest = longest.load(Ordering::Relaxed);
        eprintln!(
            "{HALF_OPEN} half-open requests, none open for longer than {longest} ms; /livez has answered {answered} times meanwhile"
        );
        assert!(longest <= 15_000, "{longest} ms");
    });
    wait_for("the descriptors are given back", PATIENCE, || {
        (count_of(cluster.coordinator_pid(), "fd") <= before + 8).then_some(())
    });
    cluster.finish();
}

#[test]
fn three_hundred_followers_share_threads_and_descriptors_even_if_there_are_few() {
    const FOLLOWERS: usize = 300;
    const JOBS: usize = 3000;
    let cluster = Cluster::running(1, 2);
    let go = cluster.path("go");
    let mut jobs = "{\"argv\": [\"true\"]}\n".repeat(JOBS - 1);
    jobs +=
        &serde_json::json!({"cmd": format!("until test -e {}; do sleep 0.1; done", go.display())})
            .to_string();
    std::fs::write(cluster.path("many.json"), jobs).expect("written");
    let out = cluster.run(&["run", "-p", "mezcal", "--detach", "many.json"]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let batch = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let coordinator = cluster.coordinator_pid();
    let before = count_of(coordinator, "fd");
    // A low limit of descriptors, with some left.
    descriptors(coordinator, before as u64 + 24);
    let (user, address) = (cluster.path("pki/users/okazaki"), cluster.address());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    descriptors(0, 4 * FOLLOWERS as u64);
    cluster.lab.entrance(0)();
    let most = Arc::new(AtomicUsize::new(0));
    runtime.block_on(async {
        let following = (0..FOLLOWERS).map(|n| {
            let (user, address, batch) = (user.clone(), address.clone(), batch.clone());
            tokio::spawn(async move {
                let mut remote = loop {
                    // This many handshakes at once take a while where there are few CPUs.
                    if let Ok(remote) = Remote::connect(&address, &user).await {
                        break remote;
                    }
                };
                let wish = if n % 3 == 0 {
                    Attachment::End
                } else {
                    Attachment::Results {
                        failed: false,
                        follow: true,
                    }
                };
                let wanted = if wish == Attachment::End {
                    0
                } else {
                    JOBS as u64
                };
                remote
                    .port
                    .requests
                    .send(ToService::Attach {
                        request: 1,
                        batch,
                        wish,
                    })
                    .await
                    .expect("it listens");
                let mut taken = 0;
                loop {
                    match remote
                        .port
                        .answers
                        .recv()
                        .await
                        .expect("the connection stays")
                    {
                        ToClient::Attached { batch, .. } => drop(batch.expect("it is served")),
                        ToClient::Results { batch, results }
                        | ToClient::CountedResults { batch, results } => {
                            taken += results.len() as u64;
                            remote
                                .port
                                .requests
                                .send(ToService::Taken {
                                    batch,
                                    results: taken,
                                })
                                .await
                                .expect("it listens");
                        }
                        ToClient::Ended { .. } => break assert_eq!(taken, wanted),
                        ToClient::Refused { reason } => panic!("{reason}"),
                        _ => {}
                    }
                }
            })
        });
        let following: Vec<_> = following.collect();
        let (looking, begin) = (most.clone(), Instant::now());
        let look = tokio::spawn(async move {
            loop {
                looking.fetch_max(count_of(coordinator, "task"), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(&go, "").expect("written");
        for follower in following {
            let ended = tokio::time::timeout(4 * PATIENCE, follower)
                .await
                .expect("the batch ends for all of them");
            ended.expect("it has all results");
        }
        look.abort();
        eprintln!(
            "{FOLLOWERS} followers of {JOBS} results: {:.1?}, {most:?} threads at most",
            begin.elapsed()
        );
    });
    assert!(most.load(Ordering::Relaxed) <= 40, "{most:?} threads");
    wait_for(
        "the descriptors are given back",
        Duration::from_secs(15),
        || {
            // The few connections to the store that are kept open have descriptors.
            (count_of(coordinator, "fd") <= before + 16).then_some(())
        },
    );
    cluster.finish();
}
