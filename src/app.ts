import { oneByOne } from "./consume/batch.ts";
import type { BatchBinding, BatchHandler, BatchOptions, Binding, Handler } from "./consume/handler.ts";
import type { ConsumerDefinition } from "./define/consumer.ts";
import { assertCounts } from "./define/count.ts";
import { type FanOut, type FanOutOptions, fanOutOf } from "./define/fan-out.ts";
import type { StreamDefinition, Subjects } from "./define/stream.ts";
import { covers } from "./define/subject.ts";
import { SortieError } from "./errors.ts";
import { assertId } from "./publish/outgoing.ts";
import type { ScheduleDefinition } from "./schedule/definition.ts";

/** Streams and the handlers of their consumers: what `serve` puts on a platform. */
export interface App<Stream extends StreamDefinition = StreamDefinition> {
  readonly kind: "app";
  readonly streams: readonly Stream[];
  readonly bindings: readonly Binding[];
  /** Whose its schedules are. */
  readonly name?: string;
  readonly schedules: readonly ScheduleDefinition[];
  /** How far invocations go on in others, for `serve`'s `onMore`. */
  readonly fanOut?: FanOut;
  /**
   * Gives a consumer its handler.
   * @throws SortieError `invalid-definition` for a consumer that has one already, whose stream is not the app's, whose dead
   * letters no stream of the app would store, or whose ack-wait outlasts the memory of a stream for message ids.
   */
  on<S extends Subjects, Filter extends string>(
    consumer: ConsumerDefinition<S, Filter>,
    handler: Handler<S, Filter, Stream>,
  ): App<Stream>;
  /**
   * Gives a consumer a handler that takes several messages at once: those that wait when one of the consumer's `concurrency`
   * places is free, `size` at most. It returns nothing where all have succeeded, else `{ failed: [{ sequence, error }] }`.
   * @throws SortieError as `on` does, and `invalid-definition` for a size that the consumer's `batch` does not let in.
   * @example
   * createApp({ streams: [clicks] }).handleBatch(storing, (messages) => insert(messages.map(({ data }) => data)), { size: 100 });
   */
  handleBatch<S extends Subjects, Filter extends string>(
    consumer: ConsumerDefinition<S, Filter>,
    handler: BatchHandler<S, Filter, Stream>,
    options?: BatchOptions,
  ): App<Stream>;
}

/**
 * Creates an app. It connects to nothing: a platform's `serve` does, once for each invocation.
 * @example
 * export const app = createApp({ streams: [orders] }).on(billing, async (message) => charge(message.data));
 */
export function createApp<const Streams extends readonly StreamDefinition[]>({
  name,
  streams,
  schedules = [],
  fanOut,
}: {
  /** Its own among the apps that share a server: whose its `schedules` are. */
  name?: string;
  streams: Streams;
  /** What `sortie apply` schedules time and again, and cancels where it is not here any more. Takes a `name`. */
  schedules?: readonly ScheduleDefinition[];
  /** How far invocations that leave something to do go on in others, by `serve`'s `onMore`. @default not at all */
  fanOut?: FanOutOptions;
}): App<Streams[number]> {
  const bindings: Binding[] = [];
  assertSchedules();
  const app: App<Streams[number]> = {
    kind: "app",
    streams,
    bindings,
    schedules,
    ...(name !== undefined && { name }),
    ...(fanOut && { fanOut: fanOutOf(fanOut) }),
    on(consumer, handler) {
      return bind({ consumer, handler } as unknown as Binding); // what the filter lets through is what the handler takes
    },
    handleBatch(consumer, handler, { size = 10 } = {}) {
      const what = whatOf(consumer as unknown as ConsumerDefinition);
      assertCounts({ size }, what);
      if (size > consumer.batch) {
        throw new SortieError(
          "invalid-definition",
          `${what}: expected size (${size}) of its handler's batches to be no more than what may be in hand, its batch (${consumer.batch}); raise the one or lower the other`,
        );
      }
      const batch = { size, handler } as unknown as BatchBinding;
      return bind({ consumer, handler: oneByOne(batch.handler), batch } as unknown as Binding);
    },
  };
  return app;

  function assertSchedules(): void {
    if (name !== undefined) assertId(name, "An app's name");
    if (schedules.length > 0 && name === undefined) {
      throw new SortieError(
        "invalid-definition",
        `createApp: expected a \`name\` beside \`schedules\`: by it apply knows which schedules were this app's and are no more`,
      );
    }
    for (const [at, { id, stream }] of schedules.entries()) {
      const what = `Schedule "${id}" of stream "${stream.name}"`;
      if (!streams.includes(stream)) {
        throw new SortieError(
          "invalid-definition",
          `${what}: expected its stream among the app's; add it to createApp({ streams: [...] })`,
        );
      }
      if (schedules.findIndex((other) => other.id === id && other.stream === stream) !== at)
        throw new SortieError("invalid-definition", `${what} is defined twice; expected an id of its own for each`);
    }
  }

  function bind(binding: Binding): App<Streams[number]> {
    const { consumer } = binding;
    const what = whatOf(consumer);
    if (!streams.includes(consumer.stream)) {
      throw new SortieError(
        "invalid-definition",
        `${what}: expected its stream among the app's; add it to createApp({ streams: [...] })`,
      );
    }
    if (bindings.some((other) => other.consumer.stream === consumer.stream && other.consumer.name === consumer.name)) {
      throw new SortieError(
        "invalid-definition",
        `${what} has a handler already; expected one \`on\` or \`handleBatch\` for each consumer`,
      );
    }
    if (!streams.some(({ subjects }) => subjects.some((subject) => covers(subject, consumer.deadLetter)))) {
      throw new SortieError(
        "invalid-definition",
        `${what}: no stream of the app captures its dead letters at "${consumer.deadLetter}"; add one, such as defineStream("DEAD", { captures: ["dead.>"] })`,
      );
    }
    const { stream: own, deadLetter } = consumer;
    const fills = own.retention === "workqueue" && (own.maxMessages !== -1 || own.maxBytes !== -1);
    if (fills && own.subjects.some((subject) => covers(subject, deadLetter))) {
      throw new SortieError(
        "invalid-definition",
        `${what}: its dead letters go to its own stream, which takes nothing more when it is full: messages that fail would stay in it for ever. Let another stream capture "${deadLetter}", or leave maxMessages and maxBytes out`,
      );
    }
    const forgetful = streams.find(({ duplicateWindowMs }) => duplicateWindowMs <= consumer.ackWaitMs);
    if (forgetful) {
      throw new SortieError(
        "invalid-definition",
        `${what}: its ackWait (${consumer.ackWaitMs} ms) is not shorter than the duplicateWindow of stream "${forgetful.name}" (${forgetful.duplicateWindowMs} ms), so that what a redelivery publishes again would be stored twice; raise the one or lower the other`,
      );
    }
    bindings.push(binding);
    return app;
  }
}

function whatOf({ name, stream }: ConsumerDefinition): string {
  return `Consumer "${name}" of stream "${stream.name}"`;
}
