// @ts-check
/** The pack on the canvas: the one file that the host loads. Each import registers its own part. */

import { onNode } from "./host.mjs";
import { reviewOnNode } from "./review_places.mjs";
import "./runs.mjs";
import "./train_view.mjs";

const REVIEWED = ["PistachioReviewDataset"]; // nodes that carry the review of their folder

for (const type of REVIEWED) onNode(type, reviewOnNode);
