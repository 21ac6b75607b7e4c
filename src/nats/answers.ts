import {
  createInbox,
  type Msg,
  type NatsConnection,
  NoRespondersError,
  RequestError,
  TimeoutError,
} from "@nats-io/nats-core";
import { longestMs } from "./within.ts";

type Asked = Pick<NatsConnection, "publish" | "subscribe">;

interface Waiting {
  readonly subject: string;
  readonly timer: ReturnType<typeof setTimeout>;
  resolve(answer: Msg): void;
  reject(error: Error): void;
}

/** What is asked of a server, with one subscription for all answers. */
export interface Answers {
  readonly request: NatsConnection["request"];
  /** The server has refused what was asked on this subject. */
  denied(subject: string, error: Error): void;
}

/**
 * As the client's own `request`, with its errors, in half of the processor's time: that one makes an error and its stack, two
 * timers and three promises for each answer that comes.
 */
export function answersOn(connection: Asked, inboxPrefix: string): Answers {
  const prefix = `${createInbox(inboxPrefix)}.`;
  const waiting = new Map<string, Waiting>();
  let asked = 0;
  let isListening = false;

  function listen(): void {
    const listening = connection.subscribe(`${prefix}*`, {
      callback(error, answer) {
        if (error) {
          endAll(failed(error));
          return;
        }
        const request = settled(answer.subject);
        if (!request) return; // it came too late
        const isFromNobody = answer.data.length === 0 && answer.headers?.code === 503;
        if (isFromNobody) request.reject(failed(new NoRespondersError(request.subject)));
        else request.resolve(answer);
      },
    });
    isListening = true;
    void listening.closed.then(() => {
      isListening = false; // where it was denied, it may be allowed by then
      endAll(new RequestError("connection closed"));
    });
  }

  function settled(reply: string): Waiting | undefined {
    const request = waiting.get(reply);
    if (!request) return undefined;
    waiting.delete(reply);
    clearTimeout(request.timer);
    return request;
  }

  function endAll(error: Error): void {
    for (const reply of [...waiting.keys()]) settled(reply)?.reject(error);
  }

  return {
    request(subject, payload, options = { timeout: 1_000 }) {
      const { timeout, headers } = options;
      return new Promise((resolve, reject) => {
        if (!isListening) listen();
        asked += 1;
        const reply = prefix + asked.toString(36);
        const timer = setTimeout(() => settled(reply)?.reject(new TimeoutError()), Math.min(timeout, longestMs));
        waiting.set(reply, { subject, timer, resolve, reject });
        try {
          connection.publish(subject, payload, { reply, ...(headers && { headers }) });
        } catch (error) {
          settled(reply);
          throw error;
        }
      });
    },
    denied(subject, error) {
      for (const [reply, request] of waiting) if (request.subject === subject) settled(reply)?.reject(failed(error));
    },
  };
}

function failed(cause: Error): RequestError {
  return new RequestError(cause.message, { cause });
}
