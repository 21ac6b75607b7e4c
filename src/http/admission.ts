import type { Context } from "hono";
import { textOf } from "../errors.ts";
import { accessIn, type Caller, callerOf, type Grant, opens, type Scope, settingOf, type Tokens } from "./access.ts";
import { RequestError } from "./problem.ts";
import { createRateLimit, type RateLimitOptions } from "./rate-limit.ts";
import { signedBy } from "./webhook.ts";

export interface AdmissionOptions {
  /** The settings that let somebody in; without one what it is for cannot be done. */
  tokens(c: Context): Tokens;
  /** Where the request came from, as the platform vouches for it; what a client could have written itself is nothing. */
  address?(c: Context): string | undefined;
  /** How often each caller may ask, counted in this instance. @default as often as they like */
  rateLimit?: RateLimitOptions | undefined;
  /**
   * The platform's own count of a caller's requests: for how many milliseconds it has to wait, 0 where it need not, undefined
   * where the platform does not count.
   */
  limit?(c: Context, caller: string): Promise<number | undefined>;
}

/** Who gets in, and how often. All of it throws RequestError. */
export interface Admission {
  /** Whoever shows a token that opens it. `subject` is what is to be published. */
  byToken(c: Context, scope: Scope, subject?: string): Promise<Caller>;
  /** Whoever shows any token at all. */
  byAnyToken(c: Context): Promise<Caller>;
  /** Whoever has signed what `body` brings for a subject, at a time not further from now than the window. */
  bySignature(
    c: Context,
    subject: string,
    windowMs: number,
    body: () => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<{ id: string; payload: Uint8Array<ArrayBuffer> }>;
}

/** Of more addresses than this the one that was refused first is forgotten. */
const mostRefused = 10_000;

/**
 * Every failure to get in counts for its address, and all where no address is known count for one. Where these are too many,
 * no signature is verified, and nothing else said, until it is time. Who shows a valid token waits for nobody else.
 */
export function createAdmission({ tokens, address, rateLimit, limit }: AdmissionOptions): Admission {
  const takeTurn = rateLimit && createRateLimit(rateLimit);
  const refusedUntil = new Map<string, number>();
  let isTold = false;

  async function count(c: Context, caller: string): Promise<number> {
    // a platform that does not answer is no reason to let nobody in
    return (await limit?.(c, caller).catch(() => undefined)) ?? takeTurn?.(caller) ?? 0;
  }

  /** What is asked of `check` counts for its address where it fails, and for who it is where it does not. */
  async function admitted<T>(c: Context, check: () => Promise<readonly [caller: string, T]>): Promise<T> {
    const [caller, found] = await check().catch(async (error: unknown) => {
      assertMayTry(c);
      const from = networkOf(c);
      const ms = await count(c, `address ${from}`);
      if (ms > 0) refuse(from, Date.now() + ms);
      throw ms > 0 ? tooMany(ms) : error;
    });
    const ms = await count(c, caller);
    if (ms > 0) throw tooMany(ms);
    return found;
  }

  function assertMayTry(c: Context): void {
    const waitMs = (refusedUntil.get(networkOf(c)) ?? 0) - Date.now();
    if (waitMs > 0) throw tooMany(waitMs);
  }

  /** One that cannot be told is unknown: it is no reason to answer otherwise. */
  function addressOf(c: Context): string | undefined {
    try {
      return address?.(c);
    } catch (error) {
      if (!isTold) console.error(JSON.stringify({ event: "address-unknown", error: textOf(error) }));
      isTold = true;
      return undefined;
    }
  }

  /** Whose failures are counted together: an address, or of IPv6, of which a caller has many, the network. */
  function networkOf(c: Context): string {
    const from = addressOf(c) ?? "unknown";
    const url = `http://[${from.replace(/%.*$/, "")}]`; // without the zone of a local address
    if (!URL.canParse(url)) return from;
    const whole = new URL(url).hostname.slice(1, -1);
    if (whole.startsWith("::ffff:")) return whole; // one of IPv4
    const [head, tail] = whole.split("::").map((part) => part.split(":").filter(Boolean));
    const groups = [...(head ?? []), ...Array<string>(8).fill("0")].slice(0, 8 - (tail?.length ?? 0));
    return `${[...groups, ...(tail ?? [])].slice(0, 4).join(":")}::/64`;
  }

  function refuse(from: string, until: number): void {
    refusedUntil.set(from, until);
    const [first] = refusedUntil.keys();
    if (refusedUntil.size > mostRefused && first !== undefined) refusedUntil.delete(first);
  }

  function identify(c: Context, setting: string, isSet: (grants: readonly Grant[]) => boolean): Promise<Caller> {
    return admitted(c, async () => {
      const { grants } = await accessIn(tokens(c));
      if (!isSet(grants)) throw notSet(setting);
      const token = /^Bearer +(\S+)$/i.exec(c.req.header("Authorization") ?? "")?.[1];
      const caller = token === undefined ? undefined : await callerOf(token, grants);
      if (caller) return [caller.id, caller];
      throw new RequestError(
        "unauthorized",
        `Expected the header \`Authorization: Bearer <token>\` with the token of ${setting}`,
      );
    });
  }

  return {
    async byToken(c, scope, subject) {
      const caller = await identify(c, settingOf[scope], (grants) => opens(grants, scope));
      if (opens(caller.grants, scope, subject)) return caller;
      throw new RequestError("forbidden", `This token is not for ${c.req.method} ${c.req.path}`);
    },
    byAnyToken: (c) => identify(c, settingOf.admin, (grants) => grants.length > 0),
    bySignature: (c, subject, windowMs, body) =>
      admitted(c, async () => {
        assertMayTry(c); // a body is read, and that costs
        const { secrets } = await accessIn(tokens(c));
        if (secrets.length === 0) throw notSet(settingOf.webhooks);
        const signed = signedBy(c.req.raw.headers, { secrets, subject, windowMs, now: () => Date.now() });
        const payload = await body();
        await signed.verify(payload);
        return [`webhook ${subject}`, { id: signed.id, payload }];
      }),
  };
}

function notSet(setting: string): RequestError {
  return new RequestError("not-configured", `This needs the secret ${setting}; it is not set`);
}

function tooMany(ms: number): RequestError {
  const seconds = Math.ceil(ms / 1_000);
  return new RequestError("too-many-requests", `Expected fewer requests; the next one is due in ${seconds} s`, seconds);
}
