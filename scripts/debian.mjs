// Debian packages, unpacked beside the project: no root, and the system's apt stays as it is.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * Where this machine gets Debian packages from: its own mirror, so that no host is written down, its own suite, and
 * Debian's keys.
 */
export function debianSource() {
  const keyring = ["gpg", "pgp"].map((e) => `/usr/share/keyrings/debian-archive-keyring.${e}`).find(existsSync);
  const [mirror, suite] = (keyring && debianMirror()) || [];
  return mirror && { keyring, mirror, suite };
}

function debianMirror() {
  const targets = spawnSync("apt-get", ["indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE)"], {
    encoding: "utf8",
  });
  return targets.stdout
    ?.split("\n")
    .map((line) => line.split(" "))
    .find(([uri, release]) => /\/debian\/?$/.test(uri) && /^[a-z]+$/.test(release ?? ""));
}

/**
 * Downloads packages with a private apt configuration, checked against Debian's signatures, and unpacks them into `home`:
 * of another `suite` these alone, of the machine's own also what they need and the machine has not. `run(command, args,
 * cwd)` runs a command to its end and answers what it said.
 */
export async function unpackFromDebian({ source, suite = source.suite, packages, home, run }) {
  const { keyring, mirror } = source;
  const apt = `${home}.apt`;
  for (const folder of ["lists/partial", "archives/partial"]) mkdirSync(join(apt, folder), { recursive: true });
  const sources = join(apt, "sources.list");
  writeFileSync(sources, `deb [signed-by=${keyring}] ${mirror} ${suite} main\n`);
  const options = {
    "Dir::Etc::sourcelist": sources,
    "Dir::Etc::sourceparts": "-",
    "Dir::State::Lists": join(apt, "lists"),
    "Dir::Cache": apt,
    "Acquire::Languages": "none",
    "Acquire::http::Timeout": "20",
    "Acquire::Retries": "1",
    "APT::Update::Error-Mode": "any",
    "APT::Install-Recommends": "false",
    ...(process.getuid?.() === 0 && { "APT::Sandbox::User": "root" }),
  };
  const flags = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  await run("apt-get", [...flags, "--quiet", "update"]);
  const plan = suite === source.suite ? await run("apt-get", [...flags, "--simulate", "install", ...packages]) : "";
  const wanted = new Set([...packages, ...missing(plan)]);
  await run("apt-get", [...flags, "--quiet", "download", ...wanted], apt);
  for (const file of readdirSync(apt).filter((name) => name.endsWith(".deb"))) {
    await run("dpkg", ["-x", join(apt, file), home]);
  }
  rmSync(apt, { recursive: true });
}

/** What apt would install to have these packages: they themselves, and what of their dependencies the machine has not. */
function missing(plan) {
  return [...plan.matchAll(/^Inst (\S+)/gm)].map(([, name]) => name);
}
