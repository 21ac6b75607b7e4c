// Brings what this repository needs, then runs the command it was given: `node scripts/setup.mjs vitest run`.
// Plain JavaScript for whatever Node the machine has; all that it brings lands in node_modules/ and .cache/.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const cache = join(root, ".cache");
const [needNode, bringNode] = ["24.0.0", "24.21.0"]; // 24 is the first to run our TypeScript as it is
const needNats = "2.12.0"; // the first with message schedules
const debianSuite = "forky";
const patience = ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"];

/** A set-up step that can't be done: one sentence for the person at the keyboard. */
class SetupError extends Error {}

mkdirSync(cache, { recursive: true });
const tools = [join(root, "node_modules", ".bin")];
const env = () => ({ ...process.env, PATH: [...tools, process.env.PATH].join(delimiter) });

try {
  await bringNodeRuntime();
  await bringPackages();
  if (!process.env.NATS_URL) await bringNatsServer();
  if (!isBuilt()) await step("Building", () => run("npm", ["run", "build"], "Mend what it says"));
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`\n${error.message}`);
  process.exit(1);
}
hand(process.argv.slice(2));

/** Node 24 or newer: the machine's own, or the one that npm carries. */
async function bringNodeRuntime() {
  if (atLeast(process.versions.node, needNode)) return;
  const name = `node-linux-${process.arch}`;
  const bin = join(cache, "node", "node_modules", name, "bin");
  if (!existsSync(join(bin, "node"))) {
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
  await step("Installing packages", () => run("npm", [...patience, "ci"], offline("npm")), done);
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
        : "https://github.com/nats-io/nats-server/releases has it; or run `docker run -p 8080:8080 nats -js` with a WebSocket listener and set NATS_URL for `npm start`";
    const keyring = ["gpg", "pgp"].map((e) => `/usr/share/keyrings/debian-archive-keyring.${e}`).find(existsSync);
    const mirror = keyring && debianMirror();
    if (!mirror) {
      throw new SetupError(
        `Sortie needs nats-server ${needNats} or newer on the PATH, and this machine has no Debian apt to bring it: ${byHand}.`,
      );
    }
    await step("Fetching nats-server from Debian testing", () => debianPackage(home, mirror, keyring));
    if (!natsOn(bin)) {
      throw new SetupError(
        `Debian ${debianSuite} offers no nats-server ${needNats} or newer for this machine: put one on the PATH (${byHand}) and run this again.`,
      );
    }
  }
  tools.push(bin);
}

/** The machine's own Debian mirror, so that no host is written down here. */
function debianMirror() {
  const targets = spawnSync("apt-get", ["indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE)"], {
    encoding: "utf8",
  });
  return targets.stdout
    ?.split("\n")
    .map((line) => line.split(" "))
    .find(([uri, release]) => /\/debian\/?$/.test(uri) && /^[a-z]+$/.test(release ?? ""))?.[0];
}

/** Downloads with a private apt configuration, checked against Debian's signatures; the system's apt stays as it is. */
async function debianPackage(home, mirror, keyring) {
  const apt = join(cache, "apt");
  for (const folder of ["lists/partial", "archives/partial"]) mkdirSync(join(apt, folder), { recursive: true });
  const sources = join(apt, "sources.list");
  writeFileSync(sources, `deb [signed-by=${keyring}] ${mirror} ${debianSuite} main\n`);
  const options = {
    "Dir::Etc::sourcelist": sources,
    "Dir::Etc::sourceparts": "-",
    "Dir::State::Lists": join(apt, "lists"),
    "Dir::Cache": apt,
    "Acquire::Languages": "none",
    "Acquire::http::Timeout": "20",
    "APT::Update::Error-Mode": "any",
    ...(process.getuid?.() === 0 && { "APT::Sandbox::User": "root" }),
  };
  const flags = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  const advice = offline("Debian's mirror");
  await run("apt-get", [...flags, "--quiet", "update"], advice);
  await run("apt-get", [...flags, "--quiet", "download", "nats-server"], advice, apt);
  const file = readdirSync(apt).find((name) => /^nats-server_.*\.deb$/.test(name));
  await run("dpkg", ["-x", join(apt, file), home], "Look at what it says");
  rmSync(apt, { recursive: true });
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
  const { stdout } = spawnSync("nats-server", ["--version"], { encoding: "utf8", env: { PATH: path } });
  const version = /v(\d+\.\d+\.\d+)/.exec(stdout ?? "")?.[1];
  return version !== undefined && atLeast(version, needNats);
}

function atLeast(version, wanted) {
  return version.localeCompare(wanted, "en", { numeric: true }) >= 0;
}

function packagesOf(lockfile) {
  const path = join(root, lockfile);
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")).packages : {};
}

function offline(what) {
  return `${what[0].toUpperCase()}${what.slice(1)} could not be reached or refused: check this machine's network and run this again`;
}

/** Runs to the end, quietly; on failure shows what the command said, then one sentence. */
function run(command, args, advice, cwd = root) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: env(), stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (said += chunk));
    child.on("error", (error) => reject(new SetupError(`\`${command}\` did not start (${error.message}). ${advice}.`)));
    child.on("close", (code) => {
      if (code === 0) return resolve();
      writeFileSync(join(cache, "setup.log"), said);
      reject(new SetupError(`\`${command} ${args.at(-1)}\` failed. ${advice}; what it said is in .cache/setup.log.`));
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
  const child = spawn(command, args, { cwd: root, env: env(), stdio: "inherit" });
  process.on("SIGINT", () => {}); // the terminal sends it to the child as well, which decides
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`\`${command}\` did not start: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
}
