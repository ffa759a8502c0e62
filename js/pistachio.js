// @ts-check
/**
 * The pack on the canvas: the one file that the host loads. The words come first, so that every part can say them
 * from its first line on; then each part registers itself. A part is one line here.
 */

import { addStylesheet } from "./elements.mjs";
import { locale } from "./host.mjs";
import { speak } from "./words.mjs";

addStylesheet("theme.css"); // the colours that the parts' own style sheets take
addStylesheet("dialog.css");
await speak(locale());
await Promise.all([
  import("./captioner.mjs"),
  import("./commands.mjs"),
  import("./folder_widget.mjs"),
  import("./notices.mjs"),
  import("./one_form.mjs"),
  import("./review_places.mjs"),
  import("./runs.mjs"),
  import("./train_view.mjs"),
]);
await import("./sentences.mjs"); // below what the others put on a node
