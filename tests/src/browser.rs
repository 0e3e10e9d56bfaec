//! A headless Chromium on a host of the lab, driven over the WebDriver protocol (W3C WebDriver 2)
//! by way of chromedriver.

use crate::lab::Lab;
use crate::{say_skipped, wait_for};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A browser with one window; dropping it ends it.
pub struct Browser {
    driver: Child,
    requests: mpsc::Sender<(String, String, Value)>,
    answers: mpsc::Receiver<Value>,
    session: String,
    _profile: tempfile::TempDir,
}

/// Time for a start or an answer.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAMS: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromedriver"];

impl Browser {
    /// Starts one on a host, or prints with the name of the running test why not.
    pub fn start(lab: &Lab, host: usize) -> Option<Self> {
        if let Some(missing) = PROGRAMS.iter().find(|path| !Path::new(path).exists()) {
            say_skipped(&format!(
                "the dashboard in a browser: {missing} (packages chromium and chromium-driver) is not installed"
            ));
            return None;
        }
        let profile = tempfile::tempdir().expect("a directory");
        let mut command: Command = lab.command(host, Path::new(PROGRAMS[1]));
        command
            .args(["--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut driver = command.spawn().expect("chromedriver starts");
        let said = BufReader::new(driver.stdout.take().expect("a pipe"));
        // Its first line has the requested port, a later one the actual port.
        let mut lines = said.lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            line.split("successfully on port ")
                .nth(1)?
                .trim_end_matches('.')
                .parse::<u16>()
                .ok()
        });
        let port = port.expect("chromedriver says its port");
        std::thread::spawn(move || lines.for_each(drop));
        let (requests, wanted) = mpsc::channel::<(String, String, Value)>();
        let (answered, answers) = mpsc::channel();
        let enter = lab.entrance(host);
        // Only a thread in that host's network can reach it.
        std::thread::spawn(move || {
            enter();
            for (method, path, body) in wanted {
                if answered.send(ask(port, &method, &path, &body)).is_err() {
                    return;
                }
            }
        });
        let mut me = Self {
            driver,
            requests,
            answers,
            session: String::new(),
            _profile: profile,
        };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ];
        let data = format!("--user-data-dir={}", me._profile.path().display());
        let arguments: Vec<&str> = arguments.into_iter().chain([data.as_str()]).collect();
        let options =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let session = me.call("POST", "/session", options);
        me.session = format!(
            "/session/{}",
            session["sessionId"]
                .as_str()
                .unwrap_or_else(|| panic!("a session: {session}"))
        );
        Some(me)
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Value {
        self.requests
            .send((method.into(), path.into(), body))
            .expect("the thread lives");
        let answer = self
            .answers
            .recv_timeout(PATIENCE)
            .expect("an answer in time");
        answer["value"].clone()
    }

    fn command(&self, path: &str, body: Value) -> Value {
        let value = self.call("POST", &format!("{}{path}", self.session), body);
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.command("/url", json!({"url": url}));
    }

    /// Sets the window's size and its user's preference for light or dark colours.
    pub fn look(&self, width: u32, height: u32, dark: bool) {
        self.command("/window/rect", json!({"width": width, "height": height}));
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command(
            "/goog/cdp/execute",
            json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}),
        );
        let features =
            json!([{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}]);
        self.command(
            "/goog/cdp/execute",
            json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}),
        );
    }

    /// The value of an expression in the page.
    pub fn value(&self, expression: &str) -> Value {
        self.command(
            "/execute/sync",
            json!({"script": format!("return {expression};"), "args": []}),
        )
    }

    /// Waits until an expression in the page is true.
    pub fn wait(&self, expression: &str) {
        wait_for(expression, PATIENCE, || {
            (self.value(expression) == true).then_some(())
        });
    }

    /// Saves a picture of the page.
    pub fn screenshot(&self, path: &Path) {
        let value = self.command(
            "/goog/cdp/execute",
            json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}}),
        );
        let data = value["data"].as_str().expect("a picture");
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, BASE64_STANDARD.decode(data).expect("base64")).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self
                .requests
                .send(("DELETE".into(), self.session.clone(), Value::Null));
            let _ = self.answers.recv_timeout(PATIENCE);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn ask(port: u16, method: &str, path: &str, body: &Value) -> Value {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("chromedriver listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all((head + &body).as_bytes())
        .expect("written");
    let mut answer = Vec::new();
    // `Content-Length` marks the end of the answer, even if the connection stays open.
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line of the head");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line
            .split_once(':')
            .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value
                .trim()
                .parse()
                .unwrap_or_else(|_| panic!("{name} must be a number"));
        }
    }
    reader
        .take(length)
        .read_to_end(&mut answer)
        .expect("the body");
    serde_json::from_slice(&answer).unwrap_or(Value::Null)
}
