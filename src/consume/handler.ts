import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { Message, MessageOf } from "../define/message.ts";
import type { StreamDefinition, Subjects } from "../define/stream.ts";
import type { Literal } from "../define/subject.ts";
import type { ScheduleOptions } from "../schedule/schedule.ts";
import type { Cancelled, Where } from "../schedule/schedules.ts";

/** The subjects that an app of these streams can publish to. */
export type PublishableSubject<Stream extends StreamDefinition> =
  Stream extends StreamDefinition<infer S> ? Literal<keyof S & string> : never;

/** What a publisher gives for a subject: its schema's input. */
export type PayloadFor<Stream extends StreamDefinition, Subject extends string> =
  Stream extends StreamDefinition<infer S> ? InputOf<S, Subject> : never;

type InputOf<S extends Subjects, Subject extends string> = {
  [Pattern in keyof S & string]: Subject extends Literal<Pattern> ? StandardSchemaV1.InferInput<S[Pattern]> : never;
}[keyof S & string];

/** What a handler is given beside its message. */
export interface HandlerContext<Stream extends StreamDefinition = StreamDefinition> {
  /**
   * Publishes when the handler has succeeded and before its message is acknowledged; never twice for one message, unless a
   * redelivery comes after the stream's duplicate window. What is refused fails the message.
   */
  publish<Subject extends PublishableSubject<Stream>>(
    subject: Subject,
    data: PayloadFor<Stream, Subject>,
    options?: { id?: string },
  ): Promise<void>;
  /** As `publish`, for a message that is released later, and never early. */
  schedule<Subject extends PublishableSubject<Stream>>(
    subject: Subject,
    data: PayloadFor<Stream, Subject>,
    options: ScheduleOptions,
  ): Promise<void>;
  /**
   * Cancels a schedule of the app's streams, at once, whatever becomes of the message: called again it answers the same. What
   * this handler itself schedules is not there yet.
   */
  cancel(id: string, where?: Where): Promise<Cancelled>;
  /** Aborts when the invocation's time is nearly over. */
  readonly signal: AbortSignal;
  /** Milliseconds until `signal` aborts. */
  remaining(): number;
}

/** Handles one message: returned → acknowledged; thrown → retried by policy, later, or never. */
export type Handler<S extends Subjects, Filter extends string, Stream extends StreamDefinition> = (
  message: MessageOf<S, Filter>,
  context: HandlerContext<Stream>,
) => unknown;

/** What a handler of batches is given beside its messages; `M` is one of them. */
export interface BatchContext<M, Stream extends StreamDefinition = StreamDefinition>
  extends Pick<HandlerContext<Stream>, "signal" | "remaining"> {
  /**
   * `publish`, `schedule` and `cancel` for one message of the batch: sent when that message has succeeded, before it is acknowledged.
   * @throws SortieError `invalid-option` for what is no message of this batch.
   */
  of(message: M): Pick<HandlerContext<Stream>, "publish" | "schedule" | "cancel">;
}

/** What a handler of batches returns where some of its messages failed. */
export interface BatchResult {
  /** Each as if a handler of its own had thrown `error`; the others have succeeded. */
  readonly failed: readonly { readonly sequence: number; readonly error: unknown }[];
}

/**
 * Handles messages together: returned → acknowledged, but for those that are reported as `failed`; thrown → the batch is
 * halved and each half started again at once, down to the message that breaks it.
 */
export type BatchHandler<S extends Subjects, Filter extends string, Stream extends StreamDefinition> = (
  messages: readonly MessageOf<S, Filter>[],
  context: BatchContext<MessageOf<S, Filter>, Stream>,
) => Answer | Promise<Answer>;

// biome-ignore lint/suspicious/noConfusingVoidType: a function without a return statement has no other type
type Answer = BatchResult | void;

export interface BatchOptions {
  /** The most messages that the handler is given at once. @default 10 */
  size?: number;
}

/** A consumer with its handler, types left behind. */
export interface Binding {
  readonly consumer: ConsumerDefinition;
  readonly handler: (message: Message, context: HandlerContext) => unknown;
  /** How it takes several messages at once; without it, it doesn't. `handler` then takes one in the same way. */
  readonly batch?: BatchBinding;
}

export interface BatchBinding {
  readonly size: number;
  readonly handler: (messages: readonly Message[], context: BatchContext<Message>) => Answer | Promise<Answer>;
}
