// @ts-check
/** What the server says, in Simplified Chinese, by the codes of its sentences; their English stands in Python, where each is made. */

/** @type {Record<string, string>} */
export default Object.freeze({
  "pictures": "{count} 张图片",

  "verdict.diverged": "训练损坏了模型：现在的效果比训练前更差。请降低学习率。我们保留了第 {chosen} 步。",
  "verdict.unclear": "无法判断训练是否有帮助；请添加图片或延长训练。所选的一步只能当作猜测。",
  "verdict.overfit": "大约从第 {best} 步起，它开始死记训练图片。我们保留了第 {chosen} 步。",
  "verdict.improving": "尚未完成：结果仍在改善。请从这里继续。",
  "verdict.plateau": "已完成：再增加步数，已测不出变化。",
  "verdict.not_measured": "这里没有任何东西能发现死记硬背。",
  "verdict.refit": "已用全部 {count} 张图片重新训练 {step} 步，步数由留出图片时的训练选定；这一结果没有经过测量。",
  "verdict.refit_of": "已用全部 {count} 张图片重新训练 {step} 步，步数由训练「{run}」选定；这一结果没有经过测量。",
  "verdict.refit_folds": "已用全部 {count} 张图片重新训练 {step} 步，步数由 {folds} 次训练的平均选定，其中每张图片都留出过一次；这一结果没有经过测量。",
  "verdict.unreadable": "无法读取这次训练的一个文件：{reason}",

  "selection.alone": "用 {pictures}可以把第 {best} 步与其他各步区分开；我们选择了第 {chosen} 步。",
  "selection.alone_earlier": "用 {pictures}可以把第 {best} 步与其他各步区分开；我们选择了第 {chosen} 步，它是改善幅度与第 {best} 步相差不到 2 % 的最早一步。",
  "selection.span": "{first}–{last}",
  "selection.tied": "用 {pictures}无法区分第 {steps} 步；我们选择了第 {chosen} 步。",
  "selection.tied_earlier": "用 {pictures}无法区分第 {steps} 步；我们选择了第 {chosen} 步，它是改善幅度与第 {best} 步相差不到 2 % 的最早一步。",
  "selection.too_few": "只留出了 {pictures}；最佳的一步并不确定（第 {first} 到 {last} 步）。",
  "selection.count": "留出了 {count} 张图片。",
  "selection.count_advice": "留出了 {count} 张图片：{least} 张是我们认为可信的最低数量，{enough} 张明显更好。",
  "selection.advice": "{least} 张图片是我们认为可信的最低数量；{enough} 张明显更好。",
  "selection.not_measured": "没有留出图片：第 {step} 步是训练预设的终点。",
  "selection.none": "训练在第一个检查点之前就结束了。",
  "selection.none_finite": "没有检查点的留出损失是有限数；第 0 步是训练前的模型。",
  "selection.override": "您选择了第 {step} 步；自动选择的是第 {automatic} 步。",

  "offer.continue": "再继续 50 %（到第 {step} 步）。",
  "offer.refit": "用全部 {count} 张图片重新训练 {step} 步；这一结果不会经过测量。",
  "offer.refit_all": "用全部图片重新训练 {step} 步；这一结果不会经过测量。",

  "stop.not_finite": "第 {step} 步的留出损失不是有限数。",
  "stop.above_base": "在第 {before} 步和第 {last} 步，留出损失都高于底模，且超出误差。",
  "stop.patience": "自第 {step} 步以来的 {evaluations} 次评估中没有出现更好的检查点。",

  "compare.no_base": "「{run}」还没有测量底模。请让它训练到第一次评估。",
  "compare.pictures": "「{run}」和「{other}」留出的图片不同（{count} 张中有 {shared} 张相同），因此它们的损失说的不是同一件事。",
  "compare.timesteps": "「{run}」和「{other}」是在不同的噪声水平上测量的。要比较它们，请把 timesteps_per_image 和时间步分布设为相同。",
  "compare.losses": "「{run}」和「{other}」在相同图片上的起始损失不同：底模、描述或分辨率不一样。",
});
