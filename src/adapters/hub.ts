import { DurableObject, RpcTarget } from "cloudflare:workers";
import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown, textOf } from "../errors.ts";
import { borrow } from "../nats/borrowed.ts";
import type { Connection } from "../nats/connection.ts";
import { lend } from "../nats/lent.ts";
import {
  type About,
  errorFromWire,
  type Lender,
  type LentSession,
  type RemoteLender,
  type WireOrder,
  type WireRequest,
} from "../nats/remote.ts";
import { within } from "../nats/within.ts";
import { connectWith, logJson, type Settings } from "./settings.ts";
import { openUpgraded } from "./upgraded-socket.ts";

export interface HubOptions {
  /** The most requests that may wait for the server's answer; what is beyond is refused with `overloaded`. @default 5000 */
  outstanding?: number;
  /** The most bytes of these, and of what is delivered and not taken yet. A Durable Object has 128 MB. @default 32 MiB */
  bytes?: number;
  /** How long its connection is kept when nobody uses it: as long as it is open the Durable Object is billed. @default "30s" */
  idle?: Duration;
}

/** The class of a Durable Object that holds one connection to NATS. */
export type HubClass = new (
  ctx: ConstructorParameters<typeof DurableObject<Settings>>[0],
  env: Settings,
) => DurableObject<Settings> & Lender;

/**
 * Makes the class of a hub: a Durable Object that holds one connection to NATS, opened when it is first used and anew when it
 * is lost, and lends it to Workers. Its settings are those of the Worker.
 * @example
 * export class Hub extends createHub() {}
 */
export function createHub({ outstanding = 5_000, bytes = 32 * 1024 * 1024, idle = "30s" }: HubOptions = {}): HubClass {
  const idleMs = toMs(idle, "idle");
  for (const [name, value] of Object.entries({ outstanding, bytes }))
    if (!(typeof value === "number" && value >= 1)) refuse(name, "a number from 1 on", value);
  return class Hub extends DurableObject<Settings> implements Lender {
    readonly #lender = lend({
      connect: async (ms) => connectWith(this.env, ms, { open: openUpgraded, name: "sortie-hub" }),
      outstanding,
      bytes,
      idleMs,
      onFailed: (error) => logJson({ event: "hub", error: textOf(error) }),
    });

    about(ms: number) {
      return this.#lender.about(ms);
    }

    request(asked: WireRequest) {
      return this.#lender.request(asked);
    }

    async session(version: string) {
      return new Session(await this.#lender.session(version));
    }
  };
}

/** A borrower's session, which ends when the borrower lets go of it, or is no more. */
class Session extends RpcTarget implements LentSession {
  readonly #session: LentSession;

  constructor(session: LentSession) {
    super();
    this.#session = session;
  }

  send(orders: readonly WireOrder[]) {
    return this.#session.send(orders);
  }

  request(asked: WireRequest) {
    return this.#session.request(asked);
  }

  next() {
    return this.#session.next();
  }

  end() {
    return this.#session.end();
  }

  [Symbol.dispose](): void {
    void this.#session.end();
  }
}

/** A Durable Object namespace whose class is a hub. */
interface HubNamespace {
  getByName(name: string): unknown;
}

export interface ViaHubOptions {
  /** How many hubs share the load, each with a connection of its own: an invocation takes one at random. @default 1 */
  connections?: number;
}

/** Connects by way of a hub, for `serve`'s `hub`. */
export type ViaHub<Env> = (env: Env, ms: number) => Promise<Connection>;

/**
 * Lets invocations use the connection of a hub instead of opening their own.
 * @throws SortieError `invalid-option`; when connecting `not-configured` where the binding is missing, `connection-failed`.
 * @example
 * export default serve(app, { hub: viaHub((env: Env) => env.HUB) });
 */
export function viaHub<Env>(
  namespace: (env: Env) => HubNamespace,
  { connections = 1 }: ViaHubOptions = {},
): ViaHub<Env> {
  if (!(Number.isInteger(connections) && connections >= 1))
    refuse("connections", "a whole number from 1 on", connections);
  const known = new Map<string, About>(); // asking before each request would be a round trip of its own

  return async (env, ms) => {
    const hubs = namespace(env);
    if (!hubs) {
      throw new SortieError(
        "not-configured",
        "The hub's binding is missing: expected a Durable Object binding and its migration in wrangler.toml, as docs/deploy/cloudflare.md shows",
      );
    }
    const name = `sortie-hub-${Math.floor(Math.random() * connections)}`;
    const hub = hubs.getByName(name) as RemoteLender;
    const about = known.get(name) ?? (await askAbout(hub, ms));
    known.set(name, about);
    return borrow(hub, about, () => known.delete(name));
  };
}

/** How much sooner the hub answers than who asks gives up: it knows why there is no connection. */
const soonerMs = 500;

async function askAbout(hub: RemoteLender, ms: number): Promise<About> {
  const asked = within(ms, "asking the hub", hub.about(Math.max(ms / 2, ms - soonerMs)));
  const told = await asked.catch((error: unknown) => {
    throw new SortieError("connection-failed", `The hub could not be reached: ${textOf(error)}`, { cause: error });
  });
  if ("error" in told) throw errorFromWire(told.error);
  return told;
}

function refuse(option: string, expected: string, got: unknown): never {
  throw new SortieError("invalid-option", `${option}: expected ${expected}, got ${shown(got)}`);
}
