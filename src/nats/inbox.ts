/**
 * What the subjects begin with at which a login hears the server's answers: its own name under `_INBOX`, so that another
 * login that may only listen under its own cannot read them. A login without a name, or with one that is no token of a
 * subject, shares `_INBOX` with all such.
 */
export function inboxPrefixOf(name: string | undefined): string {
  return name !== undefined && /^[\w-]+$/.test(name) ? `_INBOX.${name}` : "_INBOX";
}
