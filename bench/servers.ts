import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chown, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

/** A server of the bench's own: it listens on a Unix socket, and goes with all that it stored. */
export interface Server extends AsyncDisposable {
  /** What it calls itself. */
  readonly version: string;
  /** Its socket; of PostgreSQL the folder that holds it. */
  readonly socket: string;
}

/** Starts Redis with an append-only file that is synced every second, or at every write. */
export async function startRedis(fsync: "everysec" | "always"): Promise<Server> {
  const version = await versionOf("redis-server");
  return serve("redis-server", async (home) => {
    const socket = join(home, "redis.sock");
    const settings = { port: "0", unixsocket: socket, dir: home, save: "", appendonly: "yes", appendfsync: fsync };
    return { version, socket, args: Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]) };
  });
}

/** Starts PostgreSQL as it comes: every commit is synced. It refuses to run as root, so that there nobody runs it. */
export async function startPostgres(): Promise<Server> {
  const version = await versionOf("postgres");
  const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  return serve("postgres", async (home) => {
    if (user.uid) await chown(home, user.uid, user.gid);
    const data = join(home, "data");
    const init = ["--pgdata", data, "--username=bench", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
    await promisify(execFile)("initdb", init, { ...user, cwd: home });
    return { version, socket: home, args: ["-D", data, "-k", home, "-c", "listen_addresses="], user };
  });
}

/** A folder that is deleted when it is let go, or when this process is gone, however it ended. */
export async function temporaryFolder(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "sortie-bench-"));
  const reaper = afterUs('sleep 1; rm -rf "$0"', path);
  return {
    path,
    async [Symbol.asyncDispose]() {
      await rm(path, { recursive: true, force: true });
      reaper.kill();
    },
  };
}

/** @throws Error where there is no such program. */
async function versionOf(program: string): Promise<string> {
  const { stdout } = await promisify(execFile)(program, ["--version"]);
  return /\d[\d.]+/.exec(stdout)?.[0] ?? "unknown";
}

interface Prepared extends Pick<Server, "version" | "socket"> {
  readonly args: readonly string[];
  readonly user?: { readonly uid?: number; readonly gid?: number };
}

/** @throws Error with the server's own words where it does not come up within ten seconds. */
async function serve(program: string, prepare: (home: string) => Promise<Prepared>): Promise<Server> {
  await using starting = new AsyncDisposableStack();
  const { path: home } = starting.use(await temporaryFolder());
  const { version, socket, args, user } = await prepare(home);
  const child = spawn(program, args, { ...user, cwd: home, stdio: ["ignore", "pipe", "pipe"] });
  starting.defer(() => stop(child));
  starting.adopt(afterUs('kill -INT "$0"', `${child.pid}`), (reaper) => void reaper.kill());
  let said = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (chunk) => {
      said = `${said}${chunk}`.slice(-4_000);
    });
  for (const giveUpAt = Date.now() + 10_000; !/ready to accept connections/i.test(said); await sleep(20)) {
    if (hasEnded(child) || Date.now() > giveUpAt) throw new Error(`${program} did not come up:\n${said}`);
  }
  const running = starting.move();
  return { version, socket, [Symbol.asyncDispose]: () => running.disposeAsync() };
}

async function stop(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  const exited = once(child, "exit");
  child.kill("SIGTERM"); // PostgreSQL lets its clients leave first
  const impatient = setTimeout(() => child.kill("SIGINT"), 3_000);
  await exited;
  clearTimeout(impatient);
}

function hasEnded({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null;
}

/** Runs a line of shell, with `argument` as its `$0`, when this process is gone, however it ended. */
function afterUs(line: string, argument: string): ChildProcess {
  return spawn("/bin/sh", ["-c", `read -r _; ${line}`, argument], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
}
