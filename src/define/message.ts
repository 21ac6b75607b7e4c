import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { Subjects } from "./stream.ts";
import type { Covers, Literal } from "./subject.ts";

/** What a handler sees: decoded, validated and typed by its schema. */
export interface Message<Subject extends string = string, Data = unknown> {
  readonly subject: Subject;
  readonly data: Data;
  /** The id that it was published or scheduled with, else one derived from its place in the stream. */
  readonly id: string;
  /** Which start of a handler for this message this is, from 1. */
  readonly attempt: number;
  readonly stream: string;
  /** Its sequence in the stream. */
  readonly sequence: number;
  readonly publishedAt: Date;
  readonly headers: ReadonlyMap<string, string>;
  /** Of a message that was scheduled. */
  readonly schedule?: {
    readonly id: string;
    /** The time that was asked for; of a recurring one, that its recurrence says. */
    readonly plannedAt: Date;
    /** How long after it was due it was released, in milliseconds. */
    readonly lateMs: number;
  };
}

/** The subjects of a stream's schemas that a filter lets through; of several filters, that any of them does. */
export type Filtered<S extends Subjects, Filter extends string> = Filter extends string
  ? {
      [Subject in keyof S & string]: Covers<Filter, Subject> extends true
        ? Subject
        : Filter extends Literal<Subject>
          ? Subject
          : never;
    }[keyof S & string]
  : never;

/** The messages that a consumer's filter lets through: one member for each subject, so that `subject` narrows `data`. */
export type MessageOf<S extends Subjects, Filter extends string> = {
  [Subject in Filtered<S, Filter>]: Message<Literal<Subject>, StandardSchemaV1.InferOutput<S[Subject]>>;
}[Filtered<S, Filter>];
