import type { Context } from "hono";
import { type Caller, callerOf, grantsIn, opens, type Scope, settingOf, type Tokens } from "./access.ts";
import { RequestError } from "./problem.ts";
import { createRateLimit, type RateLimitOptions } from "./rate-limit.ts";
import { type Signed, signedBy } from "./webhook.ts";

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
  /** Whoever has signed what `body` brings, for a subject whose stream remembers ids for so long. */
  bySignature(
    c: Context,
    subject: string,
    rememberedMs: number,
    body: () => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<{ id: string; payload: Uint8Array<ArrayBuffer> }>;
}

/** Of more addresses than this the one that was refused first is forgotten. */
const mostRefused = 10_000;

/**
 * Tokens are compared, and signatures verified, for whoever has not just failed to show one too often: such an address waits
 * before. Who has shown a token waits for nobody else.
 */
export function createAdmission({ tokens, address, rateLimit, limit }: AdmissionOptions): Admission {
  const takeTurn = rateLimit && createRateLimit(rateLimit);
  const refusedUntil = new Map<string, number>();

  async function count(c: Context, caller: string): Promise<number> {
    // a platform that does not answer is no reason to let nobody in
    return (await limit?.(c, caller).catch(() => undefined)) ?? takeTurn?.(caller) ?? 0;
  }

  /** What is asked of `check` counts for its address as long as it fails, and for who it is when it has not. */
  async function admitted<T>(c: Context, check: () => Promise<readonly [caller: string, T]>): Promise<T> {
    const from = address?.(c);
    const waitMs = ((from !== undefined && refusedUntil.get(from)) || 0) - Date.now();
    if (waitMs > 0) throw tooMany(waitMs);
    const [caller, found] = await check().catch(async (error: unknown) => {
      if (!(error instanceof RequestError) || error.code !== "unauthorized") throw error;
      const ms = await count(c, `address ${from ?? "unknown"}`);
      if (ms > 0 && from !== undefined) refuse(from, Date.now() + ms);
      throw ms > 0 ? tooMany(ms) : error;
    });
    const ms = await count(c, caller);
    if (ms > 0) throw tooMany(ms);
    return found;
  }

  function refuse(from: string, until: number): void {
    refusedUntil.set(from, until);
    const [first] = refusedUntil.keys();
    if (refusedUntil.size > mostRefused && first !== undefined) refusedUntil.delete(first);
  }

  function identify(c: Context, settings: string): Promise<Caller> {
    return admitted(c, async () => {
      const token = /^Bearer +(\S+)$/i.exec(c.req.header("Authorization") ?? "")?.[1];
      const caller = token === undefined ? undefined : await callerOf(token, await grantsIn(tokens(c)));
      if (caller) return [caller.id, caller];
      throw new RequestError(
        "unauthorized",
        `Expected the header \`Authorization: Bearer <token>\` with the token of ${settings}`,
      );
    });
  }

  return {
    async byToken(c, scope, subject) {
      const setting = settingOf[scope];
      if (!opens(await grantsIn(tokens(c)), scope)) throw notSet(setting);
      const caller = await identify(c, setting);
      if (opens(caller.grants, scope, subject)) return caller;
      throw new RequestError("forbidden", `This token is not for ${c.req.method} ${c.req.path}`);
    },
    async byAnyToken(c) {
      if ((await grantsIn(tokens(c))).length === 0) throw notSet(settingOf.admin);
      return identify(c, settingOf.admin);
    },
    async bySignature(c, subject, rememberedMs, body) {
      const setting = tokens(c).webhooks ?? "";
      if (setting.trim() === "") throw notSet(settingOf.webhooks);
      return admitted(c, async () => {
        const signed: Signed = signedBy(c.req.raw.headers, { setting, subject, rememberedMs, now: Date.now() });
        const payload = await body();
        await signed.verify(payload);
        return [`webhook ${subject}`, { id: signed.id, payload }];
      });
    },
  };
}

function notSet(setting: string): RequestError {
  return new RequestError("not-configured", `This needs the secret ${setting}; it is not set`);
}

function tooMany(ms: number): RequestError {
  const seconds = Math.ceil(ms / 1_000);
  return new RequestError("too-many-requests", `Expected fewer requests; the next one is due in ${seconds} s`, seconds);
}
