import { assertPattern, covers, isLiteral } from "../define/subject.ts";
import { RequestError } from "./problem.ts";

/**
 * The settings that let somebody in. Each may hold several entries, separated by white space, so that one can be replaced
 * while the other still opens.
 */
export interface Tokens {
  /** For `POST /publish/{subject}`; an entry `<pattern>[,<pattern>…]:<token>` is for these subjects alone. */
  readonly publish?: string | undefined;
  /** For all of `/schedules`. */
  readonly schedules?: string | undefined;
  /** For `POST /run/{consumer}`, `POST /release` and the whole of `GET /health`. */
  readonly run?: string | undefined;
  /** For everything. */
  readonly admin?: string | undefined;
  /** As `run`, with `GET` as well: what Vercel's cron sends. */
  readonly cron?: string | undefined;
  /** Secrets of Standard Webhooks, each an entry `<subject>:whsec_<base64>`. */
  readonly webhooks?: string | undefined;
}

/** What a request can ask for. */
export type Scope = "publish" | "schedules" | "run";

/** What one token opens. */
export interface Grant {
  readonly for: Exclude<keyof Tokens, "webhooks">;
  /** Only these; undefined for all. */
  readonly subjects?: readonly string[] | undefined;
  /** Tokens are compared by their digests, which take the same time whatever they share. */
  readonly digest: Uint8Array;
}

/** What signs webhooks, for one subject and no other: the signature says nothing of where it goes. */
export interface Secret {
  readonly subject: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** All that the settings let in. */
export interface Access {
  readonly grants: readonly Grant[];
  readonly secrets: readonly Secret[];
}

/** Who has shown a token: `id` tells callers apart and is none of their secrets. */
export interface Caller {
  readonly id: string;
  readonly grants: readonly Grant[];
}

export const settingOf = {
  publish: "SORTIE_PUBLISH_TOKEN",
  schedules: "SORTIE_SCHEDULES_TOKEN",
  run: "SORTIE_RUN_TOKEN",
  admin: "SORTIE_ADMIN_TOKEN",
  cron: "CRON_SECRET",
  webhooks: "SORTIE_WEBHOOK_SECRET",
} as const satisfies Record<keyof Tokens, string>;

const shortToken = 16;
const leastSecretBytes = 24;
const encoder = new TextEncoder();
let known: { readonly text: string; readonly access: Access } | undefined;

/**
 * What the settings let in. All are read, whichever is asked for: one that is malformed closes everything.
 * @throws RequestError `not-configured` for a malformed entry, without a word of it.
 */
export async function accessIn(tokens: Tokens): Promise<Access> {
  const { publish, schedules, run, admin, cron, webhooks } = tokens;
  const text = JSON.stringify([publish, schedules, run, admin, cron, webhooks]);
  if (known?.text === text) return known.access;
  const secrets = secretsIn(webhooks);
  const entries = Object.entries({ publish, schedules, run, admin, cron }).flatMap(([scope, setting]) =>
    entriesOf(setting).map((entry, at) => parsed(scope as Grant["for"], entry, at)),
  );
  for (const name of new Set(entries.flatMap(({ for: scope, token }) => (token.length < shortToken ? scope : []))))
    console.warn(
      JSON.stringify({ event: "short-token", setting: settingOf[name], expected: `${shortToken} characters or more` }),
    );
  const grants = await Promise.all(
    entries.map(async ({ token, ...grant }) => ({ ...grant, digest: await digestOf(token) })),
  );
  known = { text, access: { grants, secrets } };
  return known.access;
}

/** Whether one of them opens it. `subject` is what is to be published; `fits` is whether a grant's pattern is for it. */
export function opens(grants: readonly Grant[], scope: Scope, subject?: string, fits = covers): boolean {
  return grants.some(
    ({ for: what, subjects }) =>
      what === "admin" ||
      ((what === scope || (what === "cron" && scope === "run")) &&
        (subject === undefined || !subjects || subjects.some((pattern) => fits(pattern, subject)))),
  );
}

/** Who shows this token; undefined for nobody. All entries are looked at, whichever matches. */
export async function callerOf(token: string, grants: readonly Grant[]): Promise<Caller | undefined> {
  const digest = await digestOf(token);
  const own = grants.filter((grant) => isSame(grant.digest, digest));
  return own.length > 0 ? { id: `token ${hexOf(digest)}`, grants: own } : undefined;
}

/** The bytes that a text in base64 stands for; undefined where it is none. */
export function bytesOf(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}

/** The entries of a setting. */
function entriesOf(setting = ""): string[] {
  return setting.split(/\s+/).filter((entry) => entry !== "");
}

/** That an entry cannot be read. */
function malformedEntry(name: keyof Tokens, at: number, expected: string): RequestError {
  return new RequestError("not-configured", `${settingOf[name]}, entry ${at + 1}: expected ${expected}`);
}

function parsed(scope: Grant["for"], entry: string, at: number) {
  const colon = entry.lastIndexOf(":"); // a subject may have one, a token of ours never does
  if (scope === "cron" || colon < 0) return { for: scope, token: entry };
  const [subjects, token] = [entry.slice(0, colon).split(","), entry.slice(colon + 1)];
  if (scope !== "publish")
    throw malformedEntry(scope, at, "a token without a colon: only one that publishes has subjects");
  const expected = 'a token, or subjects and a token as in "orders.placed,notes.*:<token>"';
  if (token === "") throw malformedEntry(scope, at, expected);
  try {
    for (const subject of subjects) assertPattern(subject, "");
  } catch {
    throw malformedEntry(scope, at, expected); // what stands there may be half a token
  }
  return { for: scope, subjects, token };
}

function secretsIn(setting?: string): Secret[] {
  const seen = new Set<string>();
  return entriesOf(setting).map((entry, at) => {
    const [, subject = "", text = ""] = /^(.+):whsec_(.*)$/.exec(entry) ?? [];
    const bytes = bytesOf(text);
    // NATS takes a comma in a subject; here it is more likely that two were meant
    if (!bytes || bytes.length < leastSecretBytes || !isLiteral(subject) || subject.includes(",")) {
      const expected = `one subject without wildcards and a secret of ${leastSecretBytes} bytes or more, as in "payments.received:whsec_<base64>"`;
      throw malformedEntry("webhooks", at, expected);
    }
    if (seen.has(`${bytes}`))
      throw malformedEntry("webhooks", at, "a secret that no other entry has: it would sign for both subjects");
    seen.add(`${bytes}`);
    return { subject, bytes };
  });
}

async function digestOf(token: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", encoder.encode(token)));
}

function isSame(one: Uint8Array, other: Uint8Array): boolean {
  let different = 0;
  for (const [at, byte] of one.entries()) different |= byte ^ (other[at] ?? 0);
  return different === 0;
}

function hexOf(bytes: Uint8Array): string {
  return [...bytes.subarray(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
