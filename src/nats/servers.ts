import { SortieError } from "../errors.ts";

/** One server of `NATS_URL`. */
export interface Server {
  /** What may be told of it: scheme, host and port. */
  readonly host: string;
  /** What is dialled: without user and password, with path and query. */
  readonly url: string;
  readonly user?: string;
  readonly pass?: string;
}

/**
 * The servers of a setting, separated by commas.
 * @throws SortieError `not-configured`, with nothing of a user or password.
 */
export function serversOf(setting: string): Server[] {
  const entries = setting.split(",").filter((entry) => entry.trim());
  return (entries.length > 0 ? entries : [""]).map((entry, n) =>
    serverOf(entry.trim(), entries.length > 1 ? `NATS_URL, number ${n + 1} of ${entries.length}` : "NATS_URL"),
  );
}

/** Spread over all functions, so that no server has them all, and none is the first to fail for all. */
export function inRandomOrder<T>(all: readonly T[], random: () => number = Math.random): T[] {
  return all
    .map((one) => ({ one, at: random() }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ one }) => one);
}

function serverOf(text: string, setting: string): Server {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !["ws:", "wss:"].includes(url.protocol)) {
    // what looks like its host may be a password, or a part of one
    const got = url?.host ? `${url.protocol}//…` : "something that is no URL";
    const commas = setting === "NATS_URL" ? "" : " A comma in a password is `%2C`.";
    throw new SortieError(
      "not-configured",
      `${setting}: expected a WebSocket URL such as "wss://nats.example.com:443", got ${got}. Functions reach NATS over its WebSocket listener (\`websocket { … }\` in the server's configuration).${commas}`,
    );
  }
  if (`${url.pathname}${url.search}${url.hash}`.includes("@")) {
    // then what looks like its host is a part of the password, and is not to be told
    throw new SortieError(
      "not-configured",
      `${setting}: expected no @ behind the host: in a password \`/\` is \`%2F\`, \`?\` is \`%3F\`, \`#\` is \`%23\` and \`@\` is \`%40\``,
    );
  }
  const host = `${url.protocol}//${url.host}`;
  const [user, pass] = [url.username, url.password].map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw new SortieError(
        "not-configured",
        `${setting}: expected its user and password to be percent-encoded: \`%\` itself is \`%25\``,
      );
    }
  });
  return { host, url: `${host}${url.pathname}${url.search}`, ...(user && { user, pass: pass ?? "" }) };
}
