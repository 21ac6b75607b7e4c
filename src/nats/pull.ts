import { createInbox } from "@nats-io/nats-core";
import { SortieError, textOf } from "../errors.ts";
import { type Connection, onClosed } from "./connection.ts";
import { type Delivery, deliveryOf } from "./delivery.ts";
import { endOf, givenBy, type Limits, missing, type PullEnd, type RequestEnd } from "./pull-status.ts";
import { openRequests, type Request } from "./requests.ts";
import { point, within } from "./within.ts";

/** What one pull asks for. */
interface PullRequest {
  readonly batch: number;
  /** The most bytes, of payloads, headers and subjects together; Infinity for any number. */
  readonly maxBytes: number;
  /** How long to wait for what is not there yet. 0 for not at all. */
  readonly waitMs: number;
  /** How long the server may be silent beyond that. */
  readonly patienceMs: number;
}

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
  const limits: Limits = { batch: Infinity, expiresMs: Infinity, maxBytes: Infinity, outstanding: bounded };
  const requests = openRequests<RequestEnd>("more");
  let pulls = 0;
  let pending = 0;
  let heardAt = Date.now();

  const subscription = connection.subscribe(`${prefix}.*`, {
    callback: (error, message) => {
      const delivery = error ? undefined : deliveryOf(message);
      heardAt = Date.now();
      if (delivery) {
        pending = delivery.pending;
        requests.delivered();
        onDelivery(delivery);
      } else if (error) {
        requests.endAll(lost(error.message));
      } else {
        requests.told(message.subject, ({ batch }, unclaimed) => {
          const given = givenBy(message, batch);
          return { given, end: endOf(message, given ?? unclaimed, pending, what, limits) };
        });
      }
    },
  });
  const listens = onClosed(connection, (error) =>
    requests.endAll(lost(error ? textOf(error) : "the connection was closed")),
  );

  function lost(reason: string): SortieError {
    return new SortieError("connection-lost", `${what}: ${reason}`);
  }

  function ask(
    asked: { batch: number; maxBytes: number; expiresMs: number; wait?: boolean },
    patienceMs: number,
  ): Promise<RequestEnd> {
    const { batch, maxBytes, expiresMs, wait = false } = asked;
    pulls += 1;
    const subject = `${prefix}.${pulls}`;
    const silenceMs = expiresMs + patienceMs;
    const askedAt = Date.now();
    return new Promise<RequestEnd>((resolve) => {
      let timer = setTimeout(watch, silenceMs);
      const request: Request<RequestEnd> = {
        subject,
        batch,
        end(end) {
          clearTimeout(timer);
          resolve(end);
        },
      };
      function watch(): void {
        const leftMs = Math.max(heardAt, askedAt) + silenceMs - Date.now(); // a large batch takes its time over a slow link
        const silent = () => `${what} did not answer a pull within ${Math.round(silenceMs)} ms`;
        if (leftMs > 0) timer = setTimeout(watch, leftMs);
        else requests.giveUp(request, new SortieError("timed-out", silent()));
      }
      requests.add(request);
      const body = {
        batch,
        ...(!wait && { no_wait: true }),
        ...(expiresMs > 0 && { expires: Math.round(expiresMs) * 1_000_000 }),
        ...(maxBytes < Infinity && { max_bytes: maxBytes }),
      };
      connection.publish(subjectOfPulls, JSON.stringify(body), { reply: subject });
    });
  }

  async function askFor({ batch, maxBytes, waitMs, patienceMs }: PullRequest): Promise<RequestEnd> {
    const limited = { batch: Math.min(batch, limits.batch), maxBytes: Math.min(maxBytes, limits.maxBytes) };
    if (waitMs > 0) return ask({ ...limited, expiresMs: Math.min(waitMs, limits.expiresMs), wait: true }, patienceMs);
    const end = await ask({ ...limited, expiresMs: limits.outstanding ? 3 : 0 }, patienceMs * 0.8);
    return end === "lapsed" && pending > 0 ? ask({ ...limited, expiresMs: 25 }, patienceMs * 0.8) : end;
  }

  async function pull(asked: PullRequest): Promise<PullEnd> {
    let end = await askFor(asked);
    if (end === "limited") end = await askFor(asked);
    if (end === "limited") return "again";
    if (end === "lapsed") return "drained";
    if (end === "gone" || (end instanceof SortieError && end.code === "timed-out")) {
      const silence = end === "gone" ? lost("nobody answers for it, as while it has no leader") : end;
      const explained = await explainSilence(connection, { stream, consumer }, silence, asked.patienceMs * 0.2);
      if (explained !== "drained" || limits.outstanding) return explained;
      limits.outstanding = true; // one that its definition does not have
      return "more";
    }
    if (end instanceof SortieError) throw end;
    return end;
  }

  return {
    pull: (asked) => point("a pull", pull(asked)),
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
  let code: number | undefined;
  try {
    const looked = connection.request(`$JS.API.CONSUMER.INFO.${stream}.${consumer}`, "", { timeout: Math.max(1, ms) });
    const { error } = (await within(ms, "looking the consumer up", looked)).json<{ error?: { code: number } }>();
    code = error?.code ?? 200;
  } catch (error) {
    if (silence.code === "connection-lost") return "again";
    throw new SortieError("connection-lost", `${silence.message}, nor a look-up of the consumer: ${textOf(error)}`, {
      cause: error,
    });
  }
  if (code === 404) throw missing(`Consumer "${consumer}" of stream "${stream}"`, silence);
  // there, and silent: at a max_ack_pending that its definition does not have
  return silence.code === "timed-out" && code === 200 ? "drained" : "again";
}
