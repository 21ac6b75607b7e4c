import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { Message, MessageOf } from "../define/message.ts";
import type { StreamDefinition, Subjects } from "../define/stream.ts";
import type { Literal } from "../define/subject.ts";
import type { ScheduleOptions } from "../schedule/schedule.ts";

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

/** A consumer with its handler, types left behind. */
export interface Binding {
  readonly consumer: ConsumerDefinition;
  readonly handler: (message: Message, context: HandlerContext) => unknown;
}
