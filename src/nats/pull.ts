import { createInbox, type Msg } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { type Delivery, deliveryOf } from "./delivery.ts";
import { within } from "./within.ts";

/** How a pull ended: `more` may be waiting, or the consumer has nothing to give now. */
type PullEnd = "more" | "drained";

/** How one request ended; `lapsed` is one whose time was over before it was given anything. */
type RequestEnd = PullEnd | "lapsed" | SortieError;

export interface Puller {
  /**
   * Asks for up to `batch` deliveries that are there now, and answers when the last of them has been handed over, or
   * fails after `ms`.
   * @throws SortieError `consumer-missing`, `stream-refused`, `connection-lost` or `timed-out`.
   */
  pull(batch: number, ms: number): Promise<PullEnd>;
}

/**
 * Pulls from one consumer over one subscription. A pull carries `no_wait` and an `expires` of a few milliseconds: the
 * server answers at once when it has something, and when they are over where it has nothing, or where a bare `no_wait`
 * stays unanswered (a consumer at its max_ack_pending). A busy server may let them pass unserved: where the last delivery
 * said that more were waiting, the pull is repeated once, with more patience. The subscription ends with the connection.
 */
export function openPuller(
  connection: Connection,
  { stream, consumer }: { stream: string; consumer: string },
  onDelivery: (delivery: Delivery) => void,
): Puller {
  const what = `Consumer "${consumer}" of stream "${stream}"`;
  const prefix = createInbox();
  let pulls = 0;
  let pending = 0; // on the consumer, behind the last delivery
  let current: { subject: string; batch: number; received: number; end: (end: RequestEnd) => void } | undefined;

  connection.subscribe(`${prefix}.*`, {
    callback: (error, message) => {
      const delivery = error ? undefined : deliveryOf(message);
      if (delivery) {
        pending = delivery.pending;
        onDelivery(delivery);
        if (!current) return;
        current.received += 1;
        if (current.received === current.batch) current.end("more");
      } else if (current && (error || message.subject === current.subject)) {
        const end = error
          ? new SortieError("connection-lost", `${what}: ${error.message}`)
          : statusOf(message, current.received, what);
        if (end) current.end(end);
      }
    },
  });

  function ask(batch: number, ms: number, expiresMs: number): Promise<RequestEnd> {
    pulls += 1;
    const subject = `${prefix}.${pulls}`;
    let timer: ReturnType<typeof setTimeout> | undefined;
    return new Promise<RequestEnd>((resolve) => {
      current = { subject, batch, received: 0, end: resolve };
      const silence = new SortieError("timed-out", `${what} did not answer a pull within ${Math.round(ms)} ms`);
      timer = setTimeout(() => resolve(silence), ms);
      const request = JSON.stringify({ batch, no_wait: true, expires: expiresMs * 1_000_000 });
      connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`, request, { reply: subject });
    }).finally(() => {
      clearTimeout(timer);
      current = undefined;
    });
  }

  return {
    async pull(batch, ms) {
      const giveUpAt = Date.now() + ms * 0.8;
      let end = await ask(batch, giveUpAt - Date.now(), 5);
      if (end === "lapsed" && pending > 0) end = await ask(batch, giveUpAt - Date.now(), 25);
      if (!(end instanceof SortieError)) return end === "more" ? "more" : "drained";
      if (end.code !== "timed-out") throw end;
      throw await explainSilence(connection, { stream, consumer }, end, ms * 0.2);
    },
  };
}

/** What the server's status ends a pull with; undefined for one that does not end it (a heartbeat). */
function statusOf(message: Msg, received: number, what: string): RequestEnd | undefined {
  const code = message.headers?.code;
  const description = message.headers?.description ?? "";
  switch (code) {
    case 100:
      return undefined;
    case 404:
      return "drained";
    case 408: // its time was over: with nothing to give, or in the middle of handing out
      return received > 0 ? "more" : "lapsed";
    case 409:
      if (/deleted/i.test(description)) return missing(what);
      return new SortieError("stream-refused", `${what} refused a pull: ${description}`);
    case 503:
      return missing(what);
    default:
      return new SortieError("stream-refused", `${what} answered a pull with status ${code} ${description}`);
  }
}

function missing(what: string, cause?: unknown): SortieError {
  return new SortieError(
    "consumer-missing",
    `${what} does not exist on the server. Create it from its definition: npx sortie apply <the module with your app>`,
    { cause },
  );
}

/** Servers before 2.10 answer a pull on a missing consumer with silence, as does a connection that is dead. */
async function explainSilence(
  connection: Connection,
  { stream, consumer }: { stream: string; consumer: string },
  silence: SortieError,
  ms: number,
): Promise<SortieError> {
  try {
    const looked = connection.request(`$JS.API.CONSUMER.INFO.${stream}.${consumer}`, "", { timeout: Math.max(1, ms) });
    const { error } = (await within(ms, "looking the consumer up", looked)).json<{ error?: { code: number } }>();
    return error?.code === 404 ? missing(`Consumer "${consumer}" of stream "${stream}"`, silence) : silence;
  } catch (error) {
    return new SortieError("connection-lost", `${silence.message}, nor a look-up of the consumer: ${error}`, {
      cause: error,
    });
  }
}
