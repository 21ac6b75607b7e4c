// Brings what this repository needs, then runs the command it was given: `node scripts/setup.mjs vitest run`.
// Plain JavaScript for whatever Node the machine has; all that it brings lands in node_modules/ and .cache/.
import { spawn, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { debianSource, unpackFromDebian } from "./debian.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const cache = join(root, ".cache");
const [needNode, bringNode] = ["24.0.0", "24.21.0"]; // 24 is the first to run our TypeScript as it is
const needNats = "2.12.0"; // the first with message schedules
const debianSuite = "forky";
// what the contract tests run on beside it, and Debian's suites that have them
const oldServers = new Map([
  ["2.9", "bookworm"],
  ["2.10", "trixie"],
]);
const patience = [
  "--fetch-retries=2",
  "--fetch-retry-mintimeout=1000",
  "--fetch-retry-maxtimeout=5000",
  "--fetch-timeout=120000",
];

/** A set-up step that can't be done: one sentence for the person at the keyboard. */
class SetupError extends Error {}

const command = process.argv.slice(2);
const testing = command[0] === "vitest";
const benching = command.some((word) => word.endsWith("bench/main.ts"));
const serving =
  testing ||
  benching ||
  command.some((word) => /picture/.test(word)) ||
  (command.includes("scripts/tour.ts") && !process.env.NATS_URL);
mkdirSync(cache, { recursive: true });
const tools = [join(root, "node_modules", ".bin")];
const env = () => ({ ...process.env, PATH: [...tools, process.env.PATH].join(delimiter) });

let current; // the command that set-up is running
let ready = false; // from then on the command that was asked for decides what a signal means
for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 })) {
  process.on(signal, () => {
    if (ready) return;
    if (current) process.kill(-current.pid, "SIGKILL"); // npm would go on cleaning up for half a minute
    unlock();
    process.exit(code);
  });
}

try {
  await lock();
  await bringNodeRuntime();
  await bringPackages();
  if (serving) await bringNatsServer();
  if (testing) await bringOldNatsServers();
  if (benching && command.join(" ").match(/^(?!.*--only)|queues|schedules/)) await bringOtherQueues();
  if (!isBuilt()) await step("Building", () => run("npm", ["run", "build"], "mend what it says"));
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`\n${error.message}`);
  process.exitCode = 1;
} finally {
  unlock();
}
ready = true;
if (!process.exitCode) hand(command);

/** One set-up at a time in this folder. */
async function lock() {
  const file = join(cache, "lock");
  const owner = () => existsSync(file) && Number(readFileSync(file, "utf8"));
  const running = (pid) => {
    try {
      return pid > 0 && process.kill(pid, 0);
    } catch {
      return false;
    }
  };
  if (running(owner())) {
    await step("Waiting for another set-up in this folder", async () => {
      while (running(owner())) await new Promise((resolve) => setTimeout(resolve, 200));
    });
  }
  writeFileSync(file, `${process.pid}`);
}

function unlock() {
  const file = join(cache, "lock");
  if (existsSync(file) && readFileSync(file, "utf8") === `${process.pid}`) rmSync(file);
}

/** Node 24 or newer: the machine's own, or the one that npm carries. */
async function bringNodeRuntime() {
  if (atLeast(process.versions.node, needNode)) return;
  const name = `node-linux-${process.arch}`;
  const bin = join(cache, "node", "node_modules", name, "bin");
  const works = () =>
    spawnSync(join(bin, "node"), ["--version"], { encoding: "utf8" }).stdout?.trim() === `v${bringNode}`;
  if (!works()) {
    rmSync(join(cache, "node"), { recursive: true, force: true });
    if (process.platform !== "linux" || !["x64", "arm64"].includes(process.arch)) {
      throw new SetupError(
        `Sortie needs Node ${needNode} or newer and found ${process.versions.node}: install it (\`brew install node\`, or https://nodejs.org/en/download) and run this again.`,
      );
    }
    await step(`Fetching Node ${bringNode} from npm`, () =>
      run(
        "npm",
        [...patience, "install", "--prefix", join(cache, "node"), "--no-save", `${name}@${bringNode}`],
        offline("npm"),
      ),
    );
  }
  tools.push(bin);
}

/** The packages of package-lock.json, exactly. */
async function bringPackages() {
  const locked = packagesOf("package-lock.json");
  const wanted = Object.entries(locked).filter(([path, entry]) => path !== "" && !entry.optional);
  const installed = packagesOf("node_modules/.package-lock.json");
  if (wanted.every(([path, entry]) => installed[path]?.version === entry.version)) return;
  const done = () => wanted.filter(([path]) => existsSync(join(root, path, "package.json"))).length / wanted.length;
  await step(
    "Installing packages",
    () => run("npm", [...patience, "ci", "--include=dev", "--include=optional"], offline("npm")),
    done,
  );
}

/** nats-server 2.12 or newer: the one on the PATH, or Debian testing's, unpacked beside the project. */
async function bringNatsServer() {
  if (natsOn(process.env.PATH)) return;
  const home = join(cache, "nats-server");
  const bin = join(home, "usr", "sbin");
  if (!natsOn(bin)) {
    const byHand =
      process.platform === "darwin"
        ? "`brew install nats-server`"
        : "https://github.com/nats-io/nats-server/releases has it; for `npm start` alone a container does as well, with `jetstream {}` and `websocket { port: 8080, no_tls: true }` in its configuration and NATS_URL=ws://127.0.0.1:8080 here";
    const source = debianSource();
    if (!source) {
      throw new SetupError(
        `Sortie needs nats-server ${needNats} or newer on the PATH, and this machine has no Debian apt to bring it: ${byHand}.`,
      );
    }
    await step("Fetching nats-server from Debian testing", () => unpackNatsServer(source, debianSuite, home));
    if (!natsOn(bin)) {
      throw new SetupError(
        `Debian ${debianSuite} offers no nats-server ${needNats} or newer for this machine: put one on the PATH (${byHand}) and run this again.`,
      );
    }
  }
  tools.push(bin);
}

/** Elsewhere than on Debian the tests that need them say how to bring them. */
async function bringOldNatsServers() {
  for (const [version, suite] of oldServers) {
    const home = join(cache, `nats-server-${version}`);
    const isThere = () => natsVersion(join(home, "usr", "sbin"))?.startsWith(`${version}.`);
    const source = !isThere() && debianSource();
    if (!source) continue;
    await step(`Fetching nats-server ${version} from Debian ${suite}`, () => unpackNatsServer(source, suite, home));
    if (!isThere()) throw new SetupError(`Debian ${suite} offers no nats-server ${version} for this machine any more.`);
  }
}

function unpackNatsServer(source, suite, home) {
  const runApt = (name, args, cwd) => run(name, args, offline("Debian's mirror"), cwd);
  return unpackFromDebian({ source, suite, packages: ["nats-server"], home, run: runApt });
}

/**
 * Redis and PostgreSQL, which the bench compares with: those on the PATH, those that Debian keeps elsewhere, or those of
 * the machine's own Debian suite, unpacked beside the project. Without them the bench leaves out what needs them.
 */
async function bringOtherQueues() {
  const home = join(cache, "queues");
  const packages = { "redis-server": "redis-server", initdb: "postgresql" };
  const missing = () =>
    Object.keys(packages).filter((program) => spawnSync(program, ["--version"], { env: env() }).status !== 0);
  if (missing().length > 0) tools.push(...postgresIn("/usr/lib/postgresql"), join(home, "bin"));
  if (missing().length === 0) return;
  const source = debianSource();
  if (!source) {
    console.error(`Without ${missing().map((program) => packages[program])} on the PATH the bench leaves them out.`);
    return;
  }
  try {
    const wanted = missing().map((program) => packages[program]);
    await step(`Fetching ${wanted.join(" and ")} from Debian`, () =>
      unpackFromDebian({
        source,
        packages: wanted,
        home,
        run: (name, args, cwd) => run(name, args, offline("Debian's mirror"), cwd),
      }),
    );
    wrapPrograms(home);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`${error.message}\nThe bench leaves them out.`);
  }
}

/** Debian keeps a folder of programs for each version of PostgreSQL, off the PATH; the newest one's. */
function postgresIn(folder) {
  const versions = existsSync(folder) ? readdirSync(folder).sort((a, b) => Number(b) - Number(a)) : [];
  return versions.slice(0, 1).map((version) => join(folder, version, "bin"));
}

/** Programs in `bin` that start those unpacked in `home` with the libraries that were unpacked beside them. */
function wrapPrograms(home) {
  mkdirSync(join(home, "bin"), { recursive: true });
  const library = join(home, "usr", "lib");
  const libraries = readdirSync(library).filter((name) => name.includes("-linux-gnu"));
  const path = libraries.map((name) => join(library, name)).join(delimiter);
  const postgres = postgresIn(join(library, "postgresql")).flatMap((bin) => [
    join(bin, "initdb"),
    join(bin, "postgres"),
  ]);
  for (const program of [join(home, "usr", "bin", "redis-server"), ...postgres].filter(existsSync)) {
    const wrapper = join(home, "bin", basename(program));
    writeFileSync(wrapper, `#!/bin/sh\nLD_LIBRARY_PATH='${path}' exec '${program}' "$@"\n`);
    chmodSync(wrapper, 0o755);
  }
}

/** Whether the last file that a build makes is newer than all that goes into it. */
function isBuilt() {
  const last = join(root, "build/worker/worker.js");
  const sources = [
    "src",
    "functions",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "tsconfig.build.json",
    "wrangler.toml",
  ];
  return existsSync(last) && sources.every((path) => newest(join(root, path)) < statSync(last).mtimeMs);
}

function newest(path) {
  const { mtimeMs } = statSync(path);
  if (!statSync(path).isDirectory()) return mtimeMs;
  return readdirSync(path).reduce((latest, name) => Math.max(latest, newest(join(path, name))), mtimeMs);
}

function natsOn(path) {
  const version = natsVersion(path);
  return version !== undefined && atLeast(version, needNats);
}

function natsVersion(path) {
  const { stdout } = spawnSync("nats-server", ["--version"], { encoding: "utf8", env: { PATH: path } });
  return /v(\d+\.\d+\.\d+)/.exec(stdout ?? "")?.[1];
}

function atLeast(version, wanted) {
  return version.localeCompare(wanted, "en", { numeric: true }) >= 0;
}

function packagesOf(lockfile) {
  const path = join(root, lockfile);
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")).packages : {};
}

function offline(what) {
  return `look at what it says; if ${what} could not be reached, check this machine's network and run this again`;
}

/** Runs to the end, quietly, and answers what the command said; on failure shows the end of what the command said, then one sentence. */
function run(command, args, advice, cwd = root) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: env(), stdio: ["ignore", "pipe", "pipe"], detached: true });
    current = child;
    let said = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (said += chunk));
    child.on("error", (error) => reject(new SetupError(`\`${command}\` did not start (${error.message}): ${advice}.`)));
    child.on("close", (code) => {
      current = undefined;
      if (code === 0) return resolve(said);
      writeFileSync(join(cache, "setup.log"), said);
      const end = said.trim().split("\n").slice(-12).join("\n");
      const what = [command, ...args.filter((arg) => !/^-|[=/]/.test(arg))].join(" ");
      reject(new SetupError(`${end}\n\n\`${what}\` failed: ${advice} (all of it is in .cache/setup.log).`));
    });
  });
}

/** Shows that something is going on, as a bar where `progress` (0 to 1) is known; a line of its own without a terminal. */
async function step(label, work, progress) {
  const started = Date.now();
  const seconds = () => `${Math.round((Date.now() - started) / 1000)} s`;
  const draw = () => {
    const filled = progress && Math.round(progress() * 24);
    const bar = progress ? ` ${"█".repeat(filled)}${"░".repeat(24 - filled)}` : "";
    process.stderr.write(`\r\x1b[K${label}${bar} ${seconds()}`);
  };
  const timer = process.stderr.isTTY ? setInterval(draw, 250) : setTimeout(() => console.error(`${label} …`), 1500);
  try {
    await work();
  } finally {
    clearInterval(timer);
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  }
  if (Date.now() - started > 1500) console.error(`${label}: ${seconds()}`);
}

/** Hands the terminal to the command and ends as it ends. */
function hand([command, ...args]) {
  if (!command) return;
  const childEnv = env();
  // what is set for deployed functions must not reach the tests
  if (testing)
    for (const name of Object.keys(childEnv)) if (/^(NATS|SORTIE)_|^FORCE_COLOR$/.test(name)) delete childEnv[name];
  const child = spawn(command, args, { cwd: root, env: childEnv, stdio: "inherit" }); // the terminal sends it Ctrl-C as well
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`\`${command}\` did not start: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
}
