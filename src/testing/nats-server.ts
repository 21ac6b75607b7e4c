import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** A nats-server with JetStream, for one test or one look around. */
export interface NatsServer extends AsyncDisposable {
  /** The WebSocket listener: what `NATS_URL` takes. */
  readonly url: string;
  /** The TCP listener, for clients that are not functions. */
  readonly tcpUrl: string;
  readonly pid: number;
  /** Ends it with `signal`, keeping what it stored; `start` brings it back on the same ports. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  start(): Promise<void>;
  /** Ends it and deletes what it stored. */
  stop(): Promise<void>;
}

export interface NatsServerOptions {
  /** The program. @default "nats-server", from the PATH */
  binary?: string;
  /** Further lines of its configuration, such as `max_payload: 4MB`. */
  config?: string;
}

/**
 * Starts a nats-server on free loopback ports, with a store of its own in the system's temporary folder.
 * @throws Error with the server's own words where it does not come up within ten seconds.
 * @example
 * await using server = await startNatsServer();
 */
export async function startNatsServer({
  binary = "nats-server",
  config = "",
}: NatsServerOptions = {}): Promise<NatsServer> {
  const home = await mkdtemp(join(tmpdir(), "sortie-nats-"));
  let child: ChildProcess;
  let reaper: ChildProcess;
  let ports = { tcp: -1, ws: -1 };

  async function start(): Promise<void> {
    const file = join(home, "nats.conf");
    await writeFile(
      file,
      `host: 127.0.0.1\nport: ${ports.tcp}\nserver_name: sortie_${process.pid}\n` +
        `websocket { host: 127.0.0.1, port: ${ports.ws}, no_tls: true }\n` +
        `jetstream { store_dir: "${home}" }\nports_file_dir: "${home}"\n${config}\n`,
    );
    let said = "";
    let ended: string | undefined;
    child = spawn(binary, ["--config", file], { stdio: ["ignore", "ignore", "pipe"] });
    child.stderr?.on("data", (chunk) => {
      said = `${said}${chunk}`.slice(-4_000);
    });
    child.on("error", (error) => {
      ended = error.message;
    });
    child.on("exit", (code, signal) => {
      ended ??= `it ended with ${signal ?? code}`;
    });
    reaper = reaperOf(child, home);
    const portsFile = () => join(home, `nats-server_${child.pid}.ports`);
    const giveUpAt = Date.now() + 10_000;
    while (!existsSync(portsFile()) || (await readFile(portsFile(), "utf8")) === "") {
      if (ended !== undefined || Date.now() > giveUpAt) {
        await stop();
        throw new Error(`${binary} did not come up: ${ended ?? "no answer for 10 s"}\n${said}`);
      }
      await sleep(10);
    }
    const { nats, websocket } = JSON.parse(await readFile(portsFile(), "utf8")) as Record<
      "nats" | "websocket",
      string[]
    >;
    ports = { tcp: portOf(nats), ws: portOf(websocket) };
  }

  async function kill(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    reaper.kill();
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill(signal);
    await exited;
  }

  async function stop(): Promise<void> {
    await kill();
    await rm(home, { recursive: true, force: true });
  }

  await start();
  return {
    get url() {
      return `ws://127.0.0.1:${ports.ws}`;
    },
    get tcpUrl() {
      return `nats://127.0.0.1:${ports.tcp}`;
    },
    get pid() {
      return child.pid ?? -1;
    },
    kill,
    start,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

function portOf(urls: string[] = []): number {
  return Number(new URL(urls[0] ?? "").port);
}

/** Ends the server and deletes what it stored when this process is gone, however it ended. */
function reaperOf({ pid }: ChildProcess, home: string): ChildProcess {
  const script = 'read -r _; kill -KILL "$0"; rm -rf "$1"';
  return spawn("/bin/sh", ["-c", script, `${pid}`, home], { detached: true, stdio: ["pipe", "ignore", "ignore"] });
}
