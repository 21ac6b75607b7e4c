import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** A nats-server that the contract holds for: the newest, from the PATH, or an old one that set-up brings for the tests. */
export type ServerVersion = "newest" | "2.10" | "2.9";

/** Its program. Throws, saying what to do, where it is missing. */
export function programOf(version: ServerVersion): string {
  if (version === "newest") return "nats-server";
  const program = fileURLToPath(new URL(`../../.cache/nats-server-${version}/usr/sbin/nats-server`, import.meta.url));
  if (existsSync(program)) return program;
  throw new Error(
    `nats-server ${version} is missing at ${program}: \`npm test\` brings it from Debian; on another system put it there by hand (https://github.com/nats-io/nats-server/releases)`,
  );
}
