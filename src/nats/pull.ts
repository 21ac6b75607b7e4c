import { createInbox, type Msg } from "@nats-io/nats-core";
import { SortieError, textOf } from "../errors.ts";
import { type Connection, onClosed } from "./connection.ts";
import { type ConsumerInfo, consumerInfo, isFull } from "./consumer-info.ts";
import { type Delivery, deliveryOf } from "./delivery.ts";
import { serverIsAtLeast } from "./jetstream.ts";
import { openRequests, type Request } from "./requests.ts";
import { within } from "./within.ts";

/** What one pull asks for. */
interface PullRequest {
  readonly batch: number;
  /** The most bytes, of payloads, headers and subjects together; Infinity for any number. */
  readonly maxBytes: number;
  /** How long to wait for what is not there yet. 0 for not at all. */
  readonly waitMs: number;
  /** How long to wait for the server's word. */
  readonly patienceMs: number;
}

/**
 * How a pull ended: `more` may be waiting; the next message alone has more bytes than were asked for (`oversized`); the
 * consumer is `drained` and has nothing to give now; it is `full` and said nothing, for it has as much outstanding as it
 * may; or it is to be asked `again` in a while, as after a change of leader.
 */
type PullEnd = "more" | "oversized" | "drained" | "full" | "again";

export interface Puller {
  /**
   * Asks for deliveries, also while others are under way, and answers when the last of them has been handed over.
   * @throws SortieError `consumer-missing`, `stream-refused`, `connection-lost` or `timed-out`.
   */
  pull(request: PullRequest): Promise<PullEnd>;
  /** How many deliveries have been asked for and have not come yet. */
  readonly underWay: number;
  /** How many more messages wait on the consumer, as the last delivery said. */
  readonly pending: number;
  /** Gives up what is still being asked for. */
  close(): void;
}

/** How one request ended; `lapsed`: its time was over before it was given anything; `limited`: by a limit that is known now. */
type RequestEnd = PullEnd | "lapsed" | "limited" | "gone" | SortieError;

const heartbeatMs = 5_000;
const silentMs = 100;

/**
 * Pulls from one consumer over one subscription. A pull that does not wait carries `no_wait`; where deliveries may be
 * outstanding up to a limit (`bounded`) an `expires` of a few milliseconds as well, for the server leaves a bare `no_wait`
 * unanswered once the limit is reached. A busy server may let these pass unserved: where the last delivery said that more
 * were waiting, the pull is repeated once, with more patience.
 */
export function openPuller(
  connection: Connection,
  { stream, consumer, bounded }: { stream: string; consumer: string; bounded: boolean },
  onDelivery: (delivery: Delivery) => void,
): Puller {
  const what = `Consumer "${consumer}" of stream "${stream}"`;
  const prefix = createInbox();
  const subjectOfPulls = `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`;
  const limits = { batch: Infinity, expiresMs: Infinity, maxBytes: Infinity }; // of the consumer, learnt when they are hit
  const limitCount = Object.keys(limits).length;
  let pulls = 0;
  let pending = 0;
  const requests = openRequests<RequestEnd>("more");

  const subscription = connection.subscribe(`${prefix}.*`, {
    callback: (error, message) => {
      const delivery = error ? undefined : deliveryOf(message);
      if (delivery) {
        pending = delivery.pending;
        requests.delivered();
        onDelivery(delivery);
      } else if (error) requests.endAll(lost(error.message));
      else requests.told(message, (given) => statusOf(message, given, what, limits));
    },
  });
  const listens = onClosed(connection, (error) => {
    requests.endAll(lost(error ? textOf(error) : "the connection was closed"));
  });

  function lost(reason: string): SortieError {
    return new SortieError("connection-lost", `${what}: ${reason}`);
  }

  function ask(
    asked: { batch: number; maxBytes: number; expiresMs?: number; wait?: boolean },
    patienceMs: number,
  ): Promise<RequestEnd> {
    const { batch, maxBytes, expiresMs = 0, wait = false } = asked;
    pulls += 1;
    const subject = `${prefix}.${pulls}`;
    const beats = wait && expiresMs >= 2 * heartbeatMs;
    const silenceMs = beats ? 2.5 * heartbeatMs : expiresMs + patienceMs;
    const silent = () =>
      new SortieError("timed-out", `${what} did not answer a pull within ${Math.round(silenceMs)} ms`);
    return new Promise<RequestEnd>((resolve) => {
      const watch = () => setTimeout(() => requests.giveUp(request, silent()), silenceMs);
      let timer = watch();
      const watched = watchSilence(wait, patienceMs, (end) => requests.giveUp(request, end));
      const request: Request<RequestEnd> = {
        subject,
        batch,
        end(end) {
          clearTimeout(timer);
          watched();
          resolve(end);
        },
        ...(beats && {
          heard() {
            clearTimeout(timer);
            timer = watch();
          },
        }),
      };
      requests.add(request);
      const body = {
        batch,
        ...(!wait && { no_wait: true }),
        ...(expiresMs > 0 && { expires: Math.round(expiresMs) * 1_000_000 }),
        ...(beats && { idle_heartbeat: heartbeatMs * 1_000_000 }),
        ...(Number.isFinite(maxBytes) && { max_bytes: maxBytes }),
      };
      connection.publish(subjectOfPulls, JSON.stringify(body), { reply: subject });
    });
  }

  /**
   * A server before 2.10 is silent where there is no consumer, and may forget a request whose time is over. It is asked what
   * it knows of the consumer then, and `said` called with what that means; until what this returns is called.
   */
  function watchSilence(wait: boolean, ms: number, said: (end: RequestEnd) => void): () => void {
    if (serverIsAtLeast(connection, "2.10")) return () => {};
    let timer = setTimeout(look, silentMs);
    let over = false;
    return () => {
      over = true;
      clearTimeout(timer);
    };

    async function look(): Promise<void> {
      const info = await consumerInfo(connection, { stream, consumer }, ms).catch(() => undefined);
      if (over) return;
      if (info?.error?.code === 404) return said(missing(what));
      if (wait) return;
      if (info?.num_waiting === 0) said(isFull(info) || info.num_pending === 0 ? "drained" : "more");
      else timer = setTimeout(look, silentMs);
    }
  }

  async function ended({ batch, maxBytes, waitMs, patienceMs }: PullRequest): Promise<RequestEnd> {
    // a request for any number of bytes is none that the consumer's limit is about
    const mostBytes = maxBytes === Infinity ? Infinity : Math.min(maxBytes, limits.maxBytes);
    const limited = { batch: Math.min(batch, limits.batch), maxBytes: mostBytes };
    if (waitMs > 0) return ask({ ...limited, expiresMs: Math.min(waitMs, limits.expiresMs), wait: true }, patienceMs);
    const end = await ask({ ...limited, expiresMs: bounded ? 3 : 0 }, patienceMs * 0.8);
    return end === "lapsed" && pending > 0 ? ask({ ...limited, expiresMs: 25 }, patienceMs * 0.8) : end;
  }

  return {
    async pull(asked) {
      const once = () => within(asked.waitMs + asked.patienceMs * 2, "a pull", ended(asked));
      let end = await once();
      for (let learnt = 1; end === "limited" && learnt <= limitCount; learnt++) end = await once();
      if (end === "limited") return "again";
      if (end === "lapsed") return "drained";
      if (end === "gone" || (end instanceof SortieError && end.code === "timed-out")) {
        const silence = end === "gone" ? lost("nobody answers for it, as while it has no leader") : end;
        return explainSilence(connection, { stream, consumer }, silence, asked.patienceMs * 0.2);
      }
      if (end instanceof SortieError) throw end;
      return end;
    },
    get underWay() {
      return requests.underWay;
    },
    get pending() {
      return pending;
    },
    close() {
      listens();
      subscription.unsubscribe();
    },
  };
}

/** What the server's status ends a pull with; undefined for one that does not end it (a heartbeat). */
function statusOf(
  message: Msg,
  given: number,
  what: string,
  limits: { batch: number; expiresMs: number; maxBytes: number },
): RequestEnd | undefined {
  const code = message.headers?.code;
  const description = message.headers?.description ?? "";
  const limit = /Exceeded MaxRequest(Batch|Expires|MaxBytes) of (\S+)/i.exec(description);
  switch (code) {
    case 100:
      return undefined;
    case 404:
      return "drained";
    case 408: // its time was over: with nothing to give, or in the middle of handing out
      if (/requests pending/i.test(description)) return "drained"; // what is there was asked for before
      return given > 0 ? "more" : "lapsed";
    case 409:
      if (limit) return learn(limit[1] ?? "", limit[2] ?? "", limits);
      if (/message size exceeds/i.test(description)) return given > 0 ? "more" : "oversized";
      if (/batch completed/i.test(description)) return "more";
      if (/consumer deleted/i.test(description)) return missing(what);
      if (/leadership change|server shutdown|maxwaiting|interest/i.test(description)) return "again";
      return new SortieError("stream-refused", `${what} refused a pull: ${description}`);
    case 503:
      return "gone";
    default:
      return new SortieError("stream-refused", `${what} answered a pull with status ${code} ${description}`);
  }
}

/** Takes note of a limit that someone has set on the consumer, which every pull of ours then keeps. */
function learn(
  what: string,
  value: string,
  limits: { batch: number; expiresMs: number; maxBytes: number },
): RequestEnd {
  if (/^batch$/i.test(what)) limits.batch = Number(value);
  else if (/^maxbytes$/i.test(what)) limits.maxBytes = Number(value);
  else limits.expiresMs = durationMs(value);
  return "limited";
}

/** Go's way of writing a duration: `1m30s`, `1.5s`, `250ms`. */
function durationMs(text: string): number {
  const unitMs: Record<string, number> = {
    h: 3_600_000,
    m: 60_000,
    s: 1_000,
    ms: 1,
    µs: 0.001,
    us: 0.001,
    ns: 0.000_001,
  };
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s|µs|us|ns)/g)];
  return parts.reduce((sum, [, amount, unit]) => sum + Number(amount) * (unitMs[unit as string] ?? 0), 0);
}

function missing(what: string, cause?: unknown): SortieError {
  return new SortieError(
    "consumer-missing",
    `${what} does not exist on the server. Create it from its definition: npx sortie apply <the module with your app>`,
    { cause },
  );
}

/**
 * Nobody answers a pull on a missing consumer (a server before 2.10 says not even that), on one without a leader for the
 * moment, and over a connection that is dead.
 */
async function explainSilence(
  connection: Connection,
  { stream, consumer }: { stream: string; consumer: string },
  silence: SortieError,
  ms: number,
): Promise<PullEnd> {
  let info: ConsumerInfo;
  try {
    info = await consumerInfo(connection, { stream, consumer }, ms);
  } catch (error) {
    if (silence.code === "connection-lost") return "again";
    throw new SortieError("connection-lost", `${silence.message}, nor a look-up of the consumer: ${textOf(error)}`, {
      cause: error,
    });
  }
  if (info.error?.code === 404) throw missing(`Consumer "${consumer}" of stream "${stream}"`, silence);
  return isFull(info) ? "full" : "again";
}
